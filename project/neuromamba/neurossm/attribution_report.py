"""Pictures of CPA maps and a page for each class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.data.regions.atlases import Atlas
from neuromamba.data.regions.cohort import Cohort
from neuromamba.neurossm.attribution import Attribution
from neuromamba.neurossm.attribution_files import ScanMap, map_name
from neuromamba.pages.evidence import ENOUGH
from neuromamba.pages.figures import BLUE, GREY, ORANGE, save_figure, styled
from neuromamba.pages.page import Page, Picture, Section, Table, render

SHOWN = 15  # regions in the table
_DPI = 120  # of pictures of the brain
_SLICES = (-30, -12, 4, 20, 36, 52, 66)  # axial, mm


class GroupMap(NamedTuple):
    """Mean over the scans of a class that were classified correctly.

    Attributes:
        scans: how many.
        cpa: [N].
        shares: [P, N] weight times map: ``cpa`` is their sum.
        weights: [scans, P].
        dominant: int [N], 1 to P; 0 without attribution.
    """

    @property
    def without(self) -> int:
        """Scans whose map is 0, because no pathway's ablation lowers the logit."""
        return int((self.weights.sum(axis=1) == 0).sum())

    scans: int
    cpa: np.ndarray
    shares: np.ndarray
    weights: np.ndarray
    dominant: np.ndarray


def group_map(maps: Sequence[ScanMap], label: int) -> GroupMap | None:
    """The group map of a class; None if none of its scans was classified correctly."""
    own = [one for one in maps if one.label == label and one.correct]
    if not own:
        return None
    weights = np.stack([one.weights for one in own])
    shares = np.mean([one.weights[:, None] * one.path_maps for one in own], axis=0)
    cpa = shares.sum(0)
    dominant = np.where(cpa > 0, shares.argmax(0) + 1, 0)
    return GroupMap(len(own), cpa, shares, weights, dominant)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps; NaN where one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


def write_pages(
    folder: Path,
    cohort: Cohort,
    maps: Sequence[ScanMap],
    random: Attribution,
    atlas: Atlas | None,
) -> list[Path]:
    """Draw and write ``<CLASS>.html`` and its PNG files; returns the pages.

    Args:
        folder: of pages and pictures.
        cohort: the data.
        maps: of the scans.
        random: the same scans explained with random weights.
        atlas: None leaves out the pictures of brains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for label, name in enumerate(cohort.details.classes):
        group = group_map(maps, label)
        if group is None:
            print(f"note: no holdout scan of {name} was classified correctly; it has no page.")
            continue
        own = [i for i, one in enumerate(maps) if one.label == label and one.correct]
        chance = random.cpa[own].mean(0)
        page = _page(folder, cohort, name, group, chance, maps, maps[own[0]], atlas)
        path = folder / f"{map_name(name)}.html"
        write_text_atomically(path, render(page))
        pages.append(path)
    return pages


def _page(
    folder: Path,
    cohort: Cohort,
    name: str,
    group: GroupMap,
    chance: np.ndarray,
    maps: Sequence[ScanMap],
    example: ScanMap,
    atlas: Atlas | None,
) -> Page:
    pathways = [str(pathway) for pathway in example.pathways]
    regions = region_names(atlas, example.roi_ids.tolist())
    same = similarity(group.cpa, chance)
    summary = (
        f"Mean Calibrated Pathway Attribution of the {group.scans} holdout scans of {name} that "
        f"were classified correctly. Attribution: {example.gradient} gradients; pathway "
        f"importance: ablation to {example.ablation}.",
        _learned(maps, group.scans, same),
    )
    pictures = [
        Picture(
            save_figure(weights_figure(group, pathways), folder / f"{map_name(name)}_pathways.png"),
            "Importance of each pathway: a dot a scan, the line their mean."
            + (f" {_without(group)} all weights are 0." if group.without else ""),
            f"Pathway weights of {group.scans} scans; highest {pathways[_top(group)]}.",
        )
    ]
    if atlas is not None:
        pictures += _brains(folder, name, group, pathways, atlas)
    order = np.argsort(-group.cpa)[:SHOWN]
    rows = [
        [regions[i], f"{group.cpa[i]:.4f}", pathways[group.dominant[i] - 1], f"{chance[i]:.4f}"]
        for i in order
        if group.dominant[i]
    ]
    header = ("region", "CPA", "dominant pathway", "with random weights")
    even = group.cpa.sum() / len(group.cpa)
    note = f"CPA adds up to 1 over the {len(group.cpa)} regions; {even:.4f} is even."
    if group.without:
        note = f"{_without(group)} CPA is 0 everywhere."
    if 0 < group.without < group.scans:
        note += (
            f" That of the others adds up to 1 over the {len(group.cpa)} regions; in this mean, "
            f"{even:.4f} is even. The maps of random weights have another sum, so compare places "
            f"and not heights."
        )
    if atlas is None:
        note += " The data set names no atlas, so its regions are numbered (--atlas FILE)."
    elif any(region.isdigit() for region in atlas.regions):
        note += (
            " The atlas has no names of regions: they are given by the centre in mm (MNI). A table "
            "with the columns index and name beside its image names them."
        )
    table = Table(rows, header, note=note, numbers=(1, 3))
    sections = [
        Section("Pathways and regions", pictures=pictures),
        Section("Regions with the highest attribution", tables=[table]),
    ]
    return Page(f"CPA: {name} ({cohort.title})", summary, sections)


def _without(group: GroupMap) -> str:
    """Begins a sentence of the scans without attribution."""
    of = "the scan" if group.scans == 1 else f"{group.without} of the {group.scans} scans"
    return f"In {of} no pathway's ablation lowers the logit:"


def region_names(atlas: Atlas | None, ids: Sequence[int]) -> tuple[str, ...]:
    """Names of the regions; of an atlas without names, side and centre in mm.

    Args:
        atlas: of the data; None: not known.
        ids: N numbers of the regions.
    """
    if atlas is None:
        return tuple(f"region {i}" for i in ids)
    names = []
    for region, (x, y, z) in zip(atlas.regions, atlas.centres(), strict=True):
        if not region.isdigit():
            names.append(region)
        elif np.isnan(x):
            names.append(f"region {region}, not in the image")
        else:
            side = "left" if x < -4 else "right" if x > 4 else "midline"
            centre = ", ".join(str(round(float(value))) for value in (x, y, z))
            names.append(f"region {region}, {side} ({centre})")
    return tuple(names)


def _learned(maps: Sequence[ScanMap], explained: int, same: float) -> str:
    """Whether the map can show what was learned: only of a model that is better than chance.

    Args:
        maps: of all holdout scans.
        explained: scans of the class whose mean is shown.
        same: rank correlation with the map of random weights.
    """
    labels = np.array([one.label for one in maps])
    probability = np.array([one.probs[one.label] for one in maps])
    loss = float(-np.log(np.clip(probability, 1e-12, None)).mean())
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    chance = float(-(share * np.log(share)).sum())
    check = (
        f"Check with random weights: the map of an untrained model on the same scans has a rank "
        f"correlation of {same:.2f} with this one."
    )
    if not loss < chance:
        return (
            f"{check} On the {len(maps)} holdout scans the model is not better than chance (cross "
            f"entropy {loss:.3f}; {chance:.3f} for who knows the shares of the classes alone), so "
            f"this map does not show anything learned, however different it is."
        )
    if explained < ENOUGH:
        scans = "one scan" if explained == 1 else f"{explained} scans"
        return f"{check} With {scans} this map cannot show what the model has learned."
    return f"{check} Near 0, the map shows what was learned; near 1, it shows the data alone."


def _top(group: GroupMap) -> int:
    return int(group.weights.mean(0).argmax())


@styled
def weights_figure(group: GroupMap, pathways: Sequence[str]) -> Figure:
    """Weights of each scan and their mean, pathway by pathway."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    for number, values in enumerate(group.weights.T):
        spread = number + rng.uniform(-0.15, 0.15, len(values))
        color = BLUE if pathways[number].startswith("raw") else ORANGE
        axes.plot(spread, values, "o", ms=4, alpha=0.5, color=color)
        axes.hlines(values.mean(), number - 0.3, number + 0.3, color="black", lw=2)
    axes.axhline(1 / len(pathways), color=GREY, ls=":", lw=1)
    axes.set_xticks(range(len(pathways)), pathways)
    axes.set(ylabel="weight (of a scan they add up to 1)", ylim=(-0.02, 1.02))
    axes.set_title("Pathway importance by ablation")
    return figure


def _brains(
    folder: Path, name: str, group: GroupMap, pathways: Sequence[str], atlas: Atlas
) -> list[Picture]:
    glass = folder / f"{map_name(name)}_glass.png"
    dominant = folder / f"{map_name(name)}_dominant.png"
    top = group.cpa >= np.quantile(group.cpa, 0.75)
    shown = np.where(top, group.dominant, 0)
    pathway_slices(atlas.image_of(shown, np.int16), dominant, pathways, f"{name}: top 25 %")
    return [
        glass_brain(
            atlas.image_of(group.cpa),
            glass,
            f"CPA, {name}",
            f"CPA in the brain ({atlas.name}); the subject's left is on the left.",
            f"Glass brain with the attribution of {name}.",
        ),
        Picture(
            dominant,
            "Dominant pathway of the quarter of regions with the highest CPA.",
            f"Axial slices with the dominant pathway of each region of {name}.",
            wide=True,
            narrow=_narrow(dominant),
        ),
    ]


def _narrow(path: Path) -> Path:
    """The file of the same picture for phones."""
    return path.parent / "phone" / path.name


def glass_brain(
    image: object, path: Path, title: str, caption: str, alt: str, signed: bool = False
) -> Picture:
    """Maximum projections of a map from four sides, in a row and, for phones, in two.

    Args:
        image: of the map, NIfTI.
        path: of the PNG file; that for phones is in ``phone`` beside it.
        title: in the picture.
        caption, alt: of the picture.
        signed: whether to show values below 0, too.
    """
    from nilearn import plotting

    for rows, file in ((("lyrz",), path), (("lr", "yz"), _narrow(path))):
        figure = Figure(figsize=(9.0, 2.6) if len(rows) == 1 else (4.8, 5.2))
        height = 1 / len(rows)
        with _without_noise():
            for number, sides in enumerate(rows, start=1):
                plotting.plot_glass_brain(
                    image,
                    display_mode=sides,
                    colorbar=True,
                    cmap="RdBu_r" if signed else "inferno",
                    vmin=None if signed else 0,
                    threshold=0,
                    plot_abs=False,
                    symmetric_cbar=signed,
                    title=title if number == 1 else None,
                    figure=figure,
                    axes=(0, 1 - number * height, 1, height),
                )
            save_figure(figure, file, dpi=_DPI)
    return Picture(path, caption, alt, wide=True, narrow=_narrow(path))


def pathway_slices(image: object, path: Path, pathways: Sequence[str], title: str) -> None:
    """Axial slices whose colours are pathways (1 to P), with a legend; also for phones."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from nilearn import plotting

    colors = [matplotlib.colormaps["tab10"](i % 10) for i in range(len(pathways))]
    handles = [Patch(color=c, label=p) for c, p in zip(colors, pathways, strict=True)]
    for rows, file in (((_SLICES,), path), ((_SLICES[:4], _SLICES[4:]), _narrow(path))):
        figure = Figure(figsize=(10, 2.9) if len(rows) == 1 else (5.6, 4.6))
        below = 0.14
        height = (1 - below) / len(rows)
        with _without_noise():
            for number, places in enumerate(rows, start=1):
                plotting.plot_roi(
                    image,
                    display_mode="z",
                    cut_coords=list(places),
                    cmap=ListedColormap(colors),
                    vmin=1,
                    vmax=len(pathways),
                    colorbar=False,
                    title=title if number == 1 else None,
                    figure=figure,
                    axes=(0, 1 - number * height, 1, height),
                )
            columns = -(-len(pathways) // len(rows))
            figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=9)
            save_figure(figure, file, dpi=_DPI)


@contextmanager
def _without_noise() -> Iterator[None]:
    """nilearn remarks on its own defaults, which a user cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
