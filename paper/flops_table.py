"""FLOPs of the four sizes with several brain masks, beside the figures that the paper gives.

    python paper/flops_table.py

writes ``flops.md``, ``flops.json`` and ``flops.png`` beside itself (or into ``--folder``). Every
figure in them is counted, except those that the paper and its README publish.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import VARIANTS, ModelConfig
from neuromamba.data.windows.dataset import windows_of
from neuromamba.planning import flops
from neuromamba.planning.flop_report import PUBLISHED
from neuromamba.planning.workload import ASSUMED_RUNS

ROOT = Path(__file__).resolve().parents[1]
MODELS = {name.capitalize(): ModelConfig(embed_dim=width) for name, width in VARIANTS.items()}
PUBLISHED_MODEL = "Medium"  # the size of the paper's FLOPs
# Subjects of the pre-training cohorts (NeuroMamba README): UK Biobank, ABCD, HCP Young Adult.
PRETRAINING_SUBJECTS = 40_647 + 9_139 + 1_084
UNIONS = ((3, 1), (3, 2), (3, 4), (8, 2))  # samples of a batch, largest shift in voxels
DRAWS = 50  # batches drawn for each union
HCP_WINDOWS = 4 * 1200 // 20  # of a subject with all its resting-state runs
LINEAR = ("embedding", "block: in_proj", "block: out_proj", "output layer")


class Mask(NamedTuple):
    """A way to choose tokens.

    Attributes:
        name: as in the table.
        how: what is kept.
        tokens: of a window, the mean where it is drawn.
    """

    name: str
    how: str
    tokens: float


# ------------------------------------------------------------------------------------------- masks


def grown(mask: np.ndarray, voxels: float) -> np.ndarray:
    """All voxels within a distance of the mask; bool [X, Y, Z]."""
    return distance_transform_edt(~mask) <= voxels


def shifted(mask: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """The mask moved by whole voxels; what leaves the grid is lost. bool [X, Y, Z]."""
    moved = np.zeros_like(mask)
    pairs = [
        (slice(max(s, 0), n + min(s, 0)), slice(max(-s, 0), n - max(s, 0)))
        for s, n in zip(shift, mask.shape, strict=True)
    ]
    moved[tuple(to for to, _ in pairs)] = mask[tuple(of for _, of in pairs)]
    return moved


def union_tokens(mask: np.ndarray, batch: int, shift: int, model: ModelConfig) -> float:
    """Mean tokens that the union over a batch keeps for each of its samples.

    Every sample has the same mask, moved along each axis by a whole number of voxels drawn evenly
    from -shift to shift, independently.
    """
    random = np.random.RandomState(0)
    counts = []
    for _ in range(DRAWS):
        union = np.zeros_like(mask)
        for _ in range(batch):
            union |= shifted(mask, random.randint(-shift, shift + 1, 3).tolist())
        counts.append(flops.kept_tokens(np.flatnonzero(union), model))
    return float(np.mean(counts))


def all_masks(model: ModelConfig, wanted: int) -> list[Mask]:
    """The masks of the table, from tight to none.

    Args:
        model: gives grid and patches (the same for all sizes).
        wanted: tokens that the published saving takes; the mask that reaches them is added.
    """
    mni, voxel = flops.mni_mask(model.img_size[:3])

    def tokens(mask: np.ndarray) -> int:
        return flops.kept_tokens(np.flatnonzero(mask), model)

    masks = [Mask("MNI152", f"nilearn's brain mask at {voxel:.3g} mm, centred", tokens(mni))]
    for radius in (1, 2, 3):
        how = f"all within {radius * voxel:.3g} mm of it"
        masks.append(
            Mask(f"MNI152 + {radius} voxel{'s' * (radius > 1)}", how, tokens(grown(mni, radius)))
        )
    reach = next(r for r in range(4, max(mni.shape)) if tokens(grown(mni, r)) >= wanted)
    masks.append(
        Mask(
            f"MNI152 + {reach} voxels",
            "the first that keeps as much as was published",
            tokens(grown(mni, reach)),
        )
    )
    for batch, shift in UNIONS:
        masks.append(
            Mask(
                f"union of {batch}, shifts to {shift}",
                f"{batch} MNI152 masks in a batch, each moved by up to {shift} voxel"
                f"{'s' * (shift > 1)} along each axis; mean of {DRAWS} batches",
                union_tokens(mni, batch, shift, model),
            )
        )
    box = np.zeros_like(mni)
    inside = np.argwhere(mni)
    box[tuple(map(slice, inside.min(axis=0), inside.max(axis=0) + 1))] = True
    masks.append(Mask("box", "the smallest box around the MNI152 mask", tokens(box)))
    masks.append(Mask("none", "all tokens", model.num_tokens))
    return masks


# ----------------------------------------------------------------------------------------- figures


def assumed_windows() -> tuple[int, str]:
    """Windows of an epoch over HCP's training subjects, one run each, and how they are counted."""
    data = DataConfig(image_path=("",))
    subjects, frames = ASSUMED_RUNS["S1200"]
    each = len(windows_of(frames, data))
    source = (
        f"an assumption: {data.train_split:.0%} of HCP's {subjects:,} subjects, one run of "
        f"{frames:,} frames each, cut into {each} windows without overlap"
    )
    return int(subjects * data.train_split) * each, source


def figures(windows: int | None = None) -> dict[str, Any]:
    """Everything that the files show; ``windows`` of an epoch instead of the assumed ones."""
    source = "--windows_per_epoch"
    if windows is None:
        windows, source = assumed_windows()
    brain, both = PUBLISHED["flops_per_epoch"], PUBLISHED["flops_per_epoch_all"]
    share, digit = brain / both, 0.005e17  # they are published with three digits
    needed = {name: flops.tokens_for_share(model, share) for name, model in MODELS.items()}
    medium = MODELS[PUBLISHED_MODEL]
    masks = []
    for mask in all_masks(medium, needed[PUBLISHED_MODEL]):
        sizes = {}
        for name, model in MODELS.items():
            terms = flops.forward_terms(model, round(mask.tokens))
            everything = flops.forward_terms(model, model.num_tokens)
            training = flops.training_total(terms)
            sizes[name] = {
                "forward": flops.total(terms),
                "training": training,
                "epoch": training * windows,
                "saving_percent": 100 * (1 - training / flops.training_total(everything)),
            }
        masks.append({**mask._asdict(), "share": mask.tokens / medium.num_tokens, "sizes": sizes})
    everything = flops.forward_terms(medium, medium.num_tokens)
    linear = sum(term.flops for term in everything if term.name in LINEAR)
    embedding = sum(term.flops for term in everything if term.name == "embedding")
    counts = {
        "forward pass": flops.total(everything),
        "forward pass, linear layers only": linear,
        "forward and backward": flops.training_total(everything),
        "forward and backward, linear layers only": 3 * linear - embedding,
    }
    return {
        "published": PUBLISHED,
        "published_model": PUBLISHED_MODEL,
        "published_share": share,
        "published_share_range": (
            (brain - digit) / (both + digit),
            (brain + digit) / (both - digit),
        ),
        "windows_per_epoch": windows,
        "windows_source": source,
        "tokens_all": medium.num_tokens,
        "tokens_for_published_saving": needed,
        "masks": masks,
        "implied_windows": {
            name: {"flops_per_window": value, "windows": both / value}
            for name, value in counts.items()
        },
    }


# ------------------------------------------------------------------------------------------- files


def markdown(result: dict[str, Any]) -> str:
    """The tables as text."""
    published, everything = result["published"], result["tokens_all"]
    low, high = result["published_share_range"]
    model, needed = result["published_model"], result["tokens_for_published_saving"]
    sizes = list(needed)
    lines = [
        "# FLOPs with and without background",
        "",
        "Written by `paper/flops_table.py`; do not edit. Windows of 96 x 96 x 96 voxels and 20 "
        f"frames in patches of 6 x 6 x 6 x 2: {everything:,} tokens. Model FLOPs as "
        "`project/check_flops.py` counts them: a multiply-add is 2, the output layer of "
        "pre-training is included, backward is twice the forward.",
        "",
        "![FLOPs of a window over the share of tokens](flops.png)",
        "",
        "## Masks",
        "",
        f"| mask | what is kept | tokens | share | FLOPs saved, {model} | "
        "tokens needed for the published saving |",
        "|---|---|---|---|---|---|",
    ]
    for mask in result["masks"]:
        lines.append(
            f"| {mask['name']} | {mask['how']} | {mask['tokens']:,.0f} | {mask['share']:.1%} | "
            f"{mask['sizes'][model]['saving_percent']:.1f} % | "
            f"{needed[model] / mask['tokens']:.2f} times these |"
        )
    lines += [
        "",
        "With a union each sample pays for every token that any sample of the batch needs. Masks "
        "of real subjects differ in shape as well as in place, which these unions leave out.",
    ]
    for key, unit, scale, text in (
        ("forward", "GFLOPs", 1e9, "One window, forward pass"),
        ("training", "GFLOPs", 1e9, "One window, forward and backward pass"),
        ("epoch", "FLOPs", 1, "One epoch, forward and backward pass"),
    ):
        lines += ["", f"## {text}", ""]
        if key == "epoch":
            lines += [
                f"{result['windows_per_epoch']:,} windows ({result['windows_source']}).",
                "",
            ]
        lines += [f"| {unit} | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
        for mask in result["masks"]:
            values = (mask["sizes"][size][key] / scale for size in sizes)
            shown = (f"{value:.2e}" if key == "epoch" else f"{value:,.1f}" for value in values)
            lines.append(f"| {mask['name']} | {' | '.join(shown)} |")
    lines += [
        "",
        "## Beside the published figure",
        "",
        f"Published (NeuroMamba README; {model}, an epoch, DeepSpeed's profiler): "
        f"{published['flops_per_epoch_all']:.2e} -> {published['flops_per_epoch']:.2e}, "
        f"{published['saving_percent']} % saved. The FLOPs are proportional to the tokens, but "
        "for the last chunk of the scan, which counts as a full one. So that saving takes",
        "",
        "| size | tokens | share of all |",
        "|---|---|---|",
        *(f"| {size} | {n:,} | {n / everything:.2%} |" for size, n in needed.items()),
        "",
        f"The published digits leave room for {low:.1%} to {high:.1%}.",
        "",
        f"The published total over the FLOPs of one window with all tokens ({model}) gives the "
        "windows of the epoch, if it counted",
        "",
        "| counted | FLOPs of a window | windows | for each training subject, if "
        f"{_subjects('all')} | if {_subjects('hcp')} |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["implied_windows"].items():
        each = (row["windows"] / _subjects_count(which) for which in ("all", "hcp"))
        lines.append(
            f"| {name} | {row['flops_per_window']:.4g} | {row['windows']:,.0f} | "
            f"{next(each):,.1f} | {next(each):,.0f} |"
        )
    lines += [
        "",
        "Not known: which data the epoch covers, how many runs of a subject and how many windows "
        "of a run; whether the backward pass is in the figure (DeepSpeed's profiler counts the "
        "forward pass only); and which masks were used. That profiler sees nothing of a scan that "
        "runs as a kernel, as mamba_ssm's does; hence the rows with the linear layers only. "
        f"A subject of HCP has {HCP_WINDOWS} windows without overlap (4 runs of 1,200 frames): "
        "fewer than any row needs of HCP alone.",
    ]
    return re.sub(r"(?<=\d)%", " %", "\n".join(lines)) + "\n"


def _subjects_count(which: str) -> int:
    everyone = {"all": PRETRAINING_SUBJECTS, "hcp": ASSUMED_RUNS["S1200"][0]}[which]
    return int(everyone * DataConfig(image_path=("",)).train_split)


def _subjects(which: str) -> str:
    whose = {"all": "of UK Biobank, ABCD and HCP", "hcp": "of HCP alone"}[which]
    return f"80 % {whose} ({_subjects_count(which):,})"


def draw(result: dict[str, Any], file: Path) -> None:
    """FLOPs of a training window over the share of tokens, a line for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    shares = np.linspace(0.02, 1.0, 50)
    for name, model in MODELS.items():
        tokens = np.round(shares * model.num_tokens).astype(int)
        cost = [flops.training_total(flops.forward_terms(model, int(n))) / 1e12 for n in tokens]
        axes.plot(100 * shares, cost, label=f"{name}, {model.embed_dim} wide")
    top = axes.get_ylim()[1]
    marks = {mask["name"]: mask["share"] for mask in result["masks"]}
    chosen = [(name, marks[name], "0.55") for name in ("MNI152", "MNI152 + 3 voxels")]
    chosen.append(("published saving", result["published_share"], "black"))
    for name, share, colour in chosen:
        axes.axvline(100 * share, color=colour, linewidth=1, linestyle="--", zorder=0)
        axes.text(
            100 * share - 0.6,
            top * 0.98,
            f"{name}, {share:.0%}",
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
            color=colour,
        )
    axes.set(
        xlabel="tokens kept (% of 40,960)",
        ylabel="forward and backward, TFLOPs a window",
        xlim=(0, 100),
        ylim=(0, top),
    )
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150, metadata={"Software": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, count and write.

    Raises:
        UserInputError: a number of windows below 1, a folder that cannot be written.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where to write")
    parser.add_argument("--windows_per_epoch", type=int, help="default: HCP's, as assumed")
    arguments = parser.parse_args(argv)
    windows = arguments.windows_per_epoch
    if windows is not None and windows < 1:
        raise UserInputError(f"--windows_per_epoch: got {windows}, expected 1 or more.")
    result = figures(windows)
    try:
        (arguments.folder / "flops.md").write_text(markdown(result), encoding="utf-8")
        text = json.dumps(result, indent=2) + "\n"
        (arguments.folder / "flops.json").write_text(text, encoding="utf-8")
        draw(result, arguments.folder / "flops.png")
    except OSError as error:
        raise UserInputError(
            f"--folder: cannot write in '{arguments.folder}' ({error.strerror})."
        ) from None
    print(f"Wrote flops.md, flops.json and flops.png in {arguments.folder}")


if __name__ == "__main__":
    try:
        main()
    except UserInputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
