"""The page of ``neuromamba explain``: maps of scans and groups beside those of random weights."""

from __future__ import annotations

import gc
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import atomic_path, write_text_atomically
from neuromamba.common.text import visible
from neuromamba.inference.batch import Batch, summary
from neuromamba.inference.explain import ExplainOptions
from neuromamba.inference.explanation_files import ATTRIBUTION, MEAN, PREDICTED, RANDOM, Group
from neuromamba.inference.group_maps import MIN_SUBJECTS
from neuromamba.inference.output_folder import SCANS
from neuromamba.pages.figures import save_figure, styled
from neuromamba.pages.page import FileLink, Page, Picture, Section, Table, render, wrap_command
from neuromamba.pages.policy import with_policy
from neuromamba.reports.prediction_page import contract_section, scan_sections

PAGE, VIEW = "report.html", "_view.html"
_MOST_SCANS = 6  # with pictures on the page
_ALIKE = 0.5  # rank correlation with random weights above which a map is doubted
_SHOWN = 90  # percentile of absolute values from which the glass brain shows them
_METHODS = {
    "ig": "integrated gradients (Sundararajan et al. 2017)",
    "gradxinput": "gradient times input",
    "occlusion": "occlusion of patches",
}


def write_explanation_page(
    batch: Batch,
    groups: Sequence[Group],
    without: str,
    options: ExplainOptions,
    model_name: str,
    command: str,
) -> Path:
    """Write ``report.html`` and ``<scan>_view.html`` into the folder of a call.

    Args:
        batch: finished.
        groups: maps of groups.
        without: why there are none.
        options: of the maps.
        model_name: as the user gave it.
        command: for the end of the page.

    Returns:
        The page's path.
    """
    records = batch.in_order
    answered = [record for record in records if record["result"]]
    refused = [record for record in records if not record["result"]]
    folder, native = batch.folder.path, batch.model.contract.native
    for record in answered:
        _write_view(folder, record["scan"], native)
    with tempfile.TemporaryDirectory() as temporary:
        sections = []
        if answered:
            sections.append(_table(answered, options))
            sections += [_group(group, folder, Path(temporary)) for group in groups]
            if not groups:
                sections.append(Section("Group", [f"There is no map of a group: {without}."]))
            sections.append(_scans(answered, folder, Path(temporary), native))
        sections += [*scan_sections(answered, refused), contract_section(batch.model)]
        sections.append(Section("Command", code=wrap_command(command)))
        assert batch.model.task is not None
        page = Page(
            f"Which voxels predictions of {batch.model.task.task} rest on",
            _summary(batch, options, model_name),
            sections,
            notice=_notice(answered),
        )
        path = folder / PAGE
        write_text_atomically(path, render(page))
    return path


def _summary(batch: Batch, options: ExplainOptions, model_name: str) -> list[str]:
    by_voxel = batch.model.contract.by_voxel
    baseline = (
        "each voxel at its temporal mean" if by_voxel else "all brain voxels at the run's mean"
    )
    where = (
        "each patch, whose voxels share its part evenly"
        if options.resolution == "patch"
        else ("each voxel")
    )
    return [
        f"{model_name} on {summary(batch)}; {_METHODS[options.method]}.",
        f"Red speaks for what is explained, blue against it, compared with a baseline scan "
        f"({baseline}). A map shows {where}, summed over the frames of a window and averaged over "
        f"windows. It describes what this model uses, which need not be what differs between "
        f"people: noise that looks like a class speaks for it too.",
    ]


def _notice(answered: Sequence[Mapping[str, Any]]) -> str:
    keys = ("rank_correlation_with_random_weights", "rank_correlation_of_absolute_values")
    values = [[record["result"][key] or 0.0 for key in keys] for record in answered]
    alike = sum(max(map(abs, both)) > _ALIKE for both in values)
    if not alike:
        return ""
    return (
        f"{alike} of {len(answered)} maps resemble those of a model with random weights (rank "
        f"correlation, with or without signs, above {_ALIKE:g} or below -{_ALIKE:g}): they show "
        f"the input or the architecture, and little of what the model has learned."
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{digits}g}"


def _table(answered: Sequence[Mapping[str, Any]], options: ExplainOptions) -> Section:
    rows = []
    for record in answered:
        found = record["result"]
        predicted = found["predicted"]
        rows.append(
            [
                record["scan"],
                predicted if isinstance(predicted, str) else f"{predicted:.4g}",
                found["target"] or "the value",
                _number(found["score"]),
                _number(found["baseline_score"]),
                _number(found["completeness_error"], 2),
                _number(found["rank_correlation_with_random_weights"], 2),
                _number(found["rank_correlation_of_absolute_values"], 2),
                str(found["windows"]),
                FileLink("view", f"{record['scan']}{VIEW}"),
            ]
        )
    head = ["scan", "prediction", "explained", "score", "baseline", "completeness error"]
    head += ["random weights", "without signs", "windows", "interactive"]
    score = "the predicted value"
    if answered[0]["result"]["target"]:
        score = "logit of the class that is explained minus the mean of the others'"
    note = (
        f"Score: {score}, mean over windows; the map adds "
        f"up to score minus baseline where the completeness error is small (its share of that "
        f"difference; only of integrated gradients). Random weights: Spearman's correlation over "
        f"voxels with the map of a model with random weights (seed {options.seed}), near 0 if the "
        f"map depends on what was learned (Adebayo et al. 2018)."
    )
    return Section("Maps", tables=[Table(rows, head, note=note, numbers=range(3, 9))])


def _group(group: Group, folder: Path, temporary: Path) -> Section:
    found = group.found
    everyone = group.name == PREDICTED
    what = f"What speaks for {group.name}."
    if everyone:
        what = (
            "What speaks for the class that is predicted, which is not the same class in all "
            "subjects. If as many are predicted in each class, what all scans share cancels."
        )
    text = [f"{what} {found.subjects} subjects, {len(found.vox)} voxels in the masks of all."]
    if found.p is None or found.t is None:
        text.append(
            f"t and p are not defined: with fewer than {MIN_SUBJECTS} subjects no sign-flip test "
            f"can reach p = 0.05."
        )
    else:
        count, how = int((found.p <= 0.05).sum()), "all" if found.exact else "random"
        text.append(
            f"One-sample test of the mean against 0 by {found.permutations} ({how}) sign flips, "
            f"two-sided, corrected for the family-wise error by the largest |t|: {count} voxels "
            f"have p <= 0.05; the smallest p is {found.p.min():.2g}."
        )
    figure = map_figure(
        folder / group.files["mean"],
        folder / group.files["random"],
        f"mean of {found.subjects} subjects",
        None,
    )
    files = ", ".join(group.files.values())
    picture = Picture(
        save_figure(figure, temporary / f"{group.files['mean']}.png"),
        f"Left the model, right random weights. The glass brains show the upper "
        f"{100 - _SHOWN} % of absolute values. Files: {files}.",
        f"Mean map of {found.subjects} subjects in slices and a glass brain, beside that of random "
        f"weights.",
        wide=True,
    )
    title = "Group: the predicted class" if everyone else f"Group: {group.name}"
    return Section(title, text, pictures=[picture])


def _scans(
    answered: Sequence[Mapping[str, Any]], folder: Path, temporary: Path, native: bool
) -> Section:
    pictures = []
    for record in answered[:_MOST_SCANS]:
        scan, target = record["scan"], record["result"]["target"]
        mean = folder / SCANS / f"{scan}{MEAN}" if native else None
        figure = map_figure(
            folder / f"{scan}{ATTRIBUTION}", folder / f"{scan}{RANDOM}", target or "value", mean
        )
        pictures.append(
            Picture(
                save_figure(figure, temporary / f"{scan}.png"),
                f"{scan}: the model (left) and random weights (right). The map is "
                f"{scan}{ATTRIBUTION}; {scan}{VIEW} shows its largest tenth on any slice, in "
                f"percent of the largest value.",
                f"Attribution of {scan} in slices and a glass brain, beside that of random "
                f"weights.",
                wide=True,
            )
        )
    text = []
    if len(answered) > _MOST_SCANS:
        text = [f"The first {_MOST_SCANS} of {len(answered)} scans."]
    return Section("Scans", text, pictures=pictures)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """nilearn remarks on its own defaults, and on maps of a constant.

    It also collects garbage for every image it draws. What is there before is left out of that, or
    it would take most of the time.
    """
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()


def _limit(image: nibabel.Nifti1Image) -> tuple[float, float]:
    """End of the colours, and from where on the largest tenth of the map lies."""
    values = np.abs(np.asarray(image.dataobj))
    inside = values[values > 0]
    if not inside.size:
        return 1.0, 0.5
    end, shown = np.percentile(inside, [99.5, _SHOWN])
    return float(end), float(min(shown, 0.99 * end))


def _percent(image: nibabel.Nifti1Image) -> tuple[nibabel.Nifti1Image, float, float]:
    """A map in percent of the end of its colours, that end, and from where on it is shown."""
    end, shown = _limit(image)
    values = np.asarray(image.dataobj) * (100 / end)
    return nibabel.Nifti1Image(values.astype(np.float32), image.affine), 100.0, 100 * shown / end


def _load(path: Path) -> nibabel.Nifti1Image:
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return image


@styled
def map_figure(own: Path, random: Path, title: str, background: Path | None) -> Figure:
    """Slices and glass brain of a map, beside those of random weights.

    Args:
        own, random: NIfTI files of the maps.
        title: of the own one.
        background: mean image of a scan in native space, then without a glass brain; None for MNI.
    """
    from nilearn import plotting

    rows = 2 if background is None else 1
    figure = Figure(figsize=(12.0, 3.0 * rows))
    images = [_load(path) for path in (own, random)]
    with _without_remarks():
        cut = plotting.find_xyz_cut_coords(images[0])
        below = {} if background is None else {"bg_img": nibabel.load(background)}
        for column, (image, name) in enumerate(zip(images, (title, "random weights"), strict=True)):
            end, shown = _limit(image)
            left, height = column / 2, 1 / rows
            plotting.plot_stat_map(
                image,
                cut_coords=cut,
                threshold=end * 1e-3,
                vmax=end,
                cmap="RdBu_r",
                title=name,
                figure=figure,
                axes=(left, 1 - height, 0.49, height * 0.97),
                draw_cross=False,
                alpha=0.8,
                **below,
            )
            if background is None:
                plotting.plot_glass_brain(
                    image,
                    display_mode="lyrz",
                    threshold=shown,
                    vmax=end,
                    cmap="RdBu_r",
                    plot_abs=False,
                    colorbar=False,
                    symmetric_cbar=True,
                    figure=figure,
                    axes=(left, 0, 0.49, height * 0.97),
                )
    return figure


def _title(name: str) -> str:
    """A name as nilearn may put it into its page: nothing in it can end or begin an element."""
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", visible(name))


def _write_view(folder: Path, scan: str, native: bool) -> None:
    """Write the interactive page of a scan unless it is there; it needs no network."""
    from nilearn import plotting

    path, own = folder / f"{scan}{VIEW}", folder / f"{scan}{ATTRIBUTION}"
    if path.is_file() and path.stat().st_mtime >= own.stat().st_mtime:
        return
    image, end, shown = _percent(_load(own))
    below = {"bg_img": nibabel.load(folder / SCANS / f"{scan}{MEAN}")} if native else {}
    with _without_remarks():
        view = plotting.view_img(
            image,
            threshold=shown,
            vmax=end,
            cmap="RdBu_r",
            symmetric_cmap=True,
            title=_title(scan),
            **below,
        )
        with atomic_path(path) as temporary:
            temporary.write_text(with_policy(view.get_standalone()), encoding="utf-8")
