"""Figures of volumes: next-token predictions in a slice, and the token mask over the anatomy.

Volumes are in the order of the store, LAS: the first index grows towards the subject's left.
Slices are drawn with the subject's left on the left side and letters that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from neuromamba.checkpoints.io import load_strictly
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import from_dict
from neuromamba.config.training import PretrainConfig
from neuromamba.data.store.reader import RunFile
from neuromamba.data.windows.dataset import collate_windows
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.losses import target_pairs
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.fmamba.tokenizer import plan_compact, unpatchify
from neuromamba.fmamba.window_tokens import pack_batch
from neuromamba.pages.figures import draw_letters, save_figure, styled
from neuromamba.pages.page import Picture
from neuromamba.pages.slices import slice_image

_DROPPED = {"facecolor": (0.1, 0.1, 0.1, 0.45), "edgecolor": "white", "hatch": "////", "lw": 0}
_NEVER = {"facecolor": "#d9d9d9", "edgecolor": "#9a9a9a", "hatch": "////", "lw": 0}


def two_forms(
    draw: Callable[..., Figure], path: Path, caption: str, alt: str, for_paper: bool = True
) -> Picture:
    """A wide picture, and the same for phones, in the folder ``phone`` beside it.

    Args:
        draw: draws it; ``narrow=True`` for phones.
        path: of the PNG file.
        caption, alt: of the picture.
        for_paper: whether to write a PDF, too.
    """
    narrow = save_figure(draw(narrow=True), path.parent / "phone" / path.name)
    return Picture(save_figure(draw(), path, for_paper), caption, alt, wide=True, narrow=narrow)


def _patch_rectangles(
    axes: Axes, flagged: np.ndarray, height: int, width: int, style: dict[str, object]
) -> None:
    """Cover the patches of an image [H, W] (bool) that are flagged."""
    for y, x in np.argwhere(flagged[::height, ::width]):
        corner = (x * width - 0.5, y * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, **style))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ next token


class NextTokenExample(NamedTuple):
    """Target and next-token prediction of one frame; volumes [X, Y, Z] in scaled units.

    Attributes:
        subject: held-out subject; frame: index in its window of ``frames``.
        target: what the tokens hold; NaN in tokens that are not kept.
        predicted: NaN in tokens that are never predicted.
        mean: each voxel's mean over the window.
        mask: bool, brain voxels.
        patch: X, Y, Z of a patch.
    """

    subject: str
    frame: int
    frames: int
    target: np.ndarray
    predicted: np.ndarray
    mean: np.ndarray
    mask: np.ndarray
    patch: tuple[int, int, int]


def next_token_example(
    run: RunFolder, data: RunData, part: str = "test", item: int = 0, frame: int = -1
) -> NextTokenExample:
    """Predict the tokens of one window, each from those before it.

    Args:
        run: of pre-training with next-token prediction.
        data: its data.
        part: "train", "val" or "test".
        item: number of the window in the part.
        frame: index in the window; negative takes the middle one.

    Raises:
        UserInputError: the run had another objective, or the part is empty.
    """
    if run.contents.metadata.get("pretrain", {}).get("objective") != "autoregressive":
        raise UserInputError(f"{run.path}: not a run of next-token prediction.")
    windows = data.parts[part]
    if windows is None:
        raise UserInputError(f"{run.path}: it has no {part} subjects to show a prediction of.")
    config = run.model_config
    model = build_model(config).eval()
    load_strictly(model, run.contents.state_dict, run.checkpoint)
    batch = collate_windows([windows[item]])
    plans = plan_compact(batch["vox"], config, batch["subject"])
    packed = pack_batch(batch | {"plans": plans}, config)
    with torch.no_grad():
        output = model.forward_tokens(packed)
    assert output.prediction is not None
    frame = frame if frame >= 0 else config.img_size[3] // 2
    target = _to_grid(packed.tokens, packed.token_index, config)
    objective = from_dict(PretrainConfig, run.contents.metadata["pretrain"], str(run.checkpoint))
    sources, targets = target_pairs(objective, packed, config)
    guess = output.prediction[sources]
    if objective.loss_on == "difference":
        guess = guess + packed.tokens[sources]
    predicted = _to_grid(guess, packed.token_index[targets], config)
    mask = np.zeros(config.img_size[:3], dtype=bool)
    mask.flat[batch["vox"][0].numpy()] = True
    px, py, pz, _ = config.patch_size
    return NextTokenExample(
        subject=batch["subject"][0],
        frame=frame,
        frames=config.img_size[3],
        target=target[..., frame],
        predicted=predicted[..., frame],
        mean=target.mean(axis=-1),
        mask=mask,
        patch=(px, py, pz),
    )


def _to_grid(tokens: torch.Tensor, index: torch.Tensor, config: ModelConfig) -> np.ndarray:
    """Tokens [L, V] at grid positions [L] as a volume [X, Y, Z, T], NaN elsewhere."""
    dense = torch.full((1, config.num_tokens, config.token_dim), torch.nan)
    dense[0, index] = tokens.float()
    return unpatchify(dense, config)[0, 0].numpy()


@styled
def next_token_figure(example: NextTokenExample, narrow: bool = False) -> Figure:
    """An axial slice of target, prediction and difference; below, the same without the mean.

    Each row has one colour scale. The slice is the one with the most brain voxels. ``narrow``
    turns rows into columns, for phones.
    """
    z = int(example.mask.sum(axis=(0, 1)).argmax())
    # Outside the brain nothing deviates: the second row leaves it out.
    mean = np.where(example.mask, example.mean, np.nan)
    rows = (
        ("scaled intensity (z)", example.target, example.predicted),
        ("deviation from the voxel's mean (z)", example.target - mean, example.predicted - mean),
    )
    figure = Figure(figsize=(4.4, 7.4) if narrow else (8.0, 6.0), layout="constrained")
    grid = figure.subplots(3, 2).T if narrow else figure.subplots(2, 3)
    px, py, _ = example.patch
    brain = slice_image(example.mask, 2, z)
    for (label, target, predicted), axes_row in zip(rows, grid, strict=True):
        panels = [slice_image(v, 2, z) for v in (target, predicted, predicted - target)]
        limit = max(float(np.nanpercentile(np.abs(panels[0][brain]), 99)), 1e-6)
        never = [np.isnan(slice_image(v, 2, z)) for v in (example.target, example.predicted)]
        for axes, panel, unknown in zip(axes_row, panels, (*never, never[1]), strict=True):
            shown = axes.imshow(panel, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
            _patch_rectangles(axes, unknown, py, px, _NEVER)
            axes.contour(brain, levels=[0.5], colors="black", linewidths=0.6)
            draw_letters(axes, 2)
        where: Any = {"location": "bottom"} if narrow else {}
        label = label.replace(" (", "\n(") if narrow else label
        figure.colorbar(shown, ax=list(axes_row), label=label, shrink=0.9, extend="both", **where)
    titles = ("Target", "Predicted next tokens", "Predicted minus target")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    end = "\n" if narrow else " "
    figure.suptitle(
        f"Held-out subject {example.subject},{end}frame {example.frame + 1} of {example.frames}",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return figure


# ------------------------------------------------------------------------------ token mask


class TokenMask(NamedTuple):
    """Which tokens of a run are kept.

    Attributes:
        subject: whose run.
        mean: float [X, Y, Z], temporal mean in the units of the source; NaN outside the mask.
        kept: bool [X, Y, Z], voxels of kept tokens.
        patch: X, Y, Z of a patch.
    """

    subject: str
    mean: np.ndarray
    kept: np.ndarray
    patch: tuple[int, int, int]

    @property
    def share(self) -> float:
        """Kept tokens over all tokens."""
        return float(self.kept.mean())


def kept_patches(vox: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Kept spatial patches of a run, bool [S]; ``vox`` [N] are its brain voxels' flat indices."""
    plan = plan_compact([torch.from_numpy(np.array(vox))], config)[0]
    kept = np.zeros(int(np.prod(config.token_grid[:3])), dtype=bool)
    kept[plan.spatial_index.numpy()] = True
    return kept


def kept_shares(paths: Iterable[Path], config: ModelConfig) -> np.ndarray:
    """Share of kept tokens of each run [runs]."""
    shares = []
    for path in paths:
        run = RunFile(path)
        shares.append(kept_patches(run.vox, config).mean())
        run.close()
    return np.array(shares)


def token_mask(path: Path, config: ModelConfig) -> TokenMask:
    """Read a run's mean volume and which of its tokens are kept."""
    run = RunFile(path)
    header = run.header
    mean = np.full(header.grid, np.nan)
    frames = run.read(range(header.n_frames)).mean(axis=0, dtype=np.float64)
    mean.flat[run.vox] = frames * header.scale + header.offset
    kept = kept_patches(run.vox, config).reshape(config.token_grid[:3])
    run.close()
    px, py, pz, _ = config.patch_size
    for axis, size in enumerate((px, py, pz)):
        kept = kept.repeat(size, axis=axis)
    return TokenMask(header.subject, mean, kept, (px, py, pz))


@styled
def mean_volume_figure(path: Path) -> Figure:
    """Three orthogonal slices of a run's temporal mean, with the outline of its mask; small."""
    run = RunFile(path)
    header = run.header
    mean = np.zeros(header.grid)
    frames = run.read(range(header.n_frames)).mean(axis=0, dtype=np.float64)
    mean.flat[run.vox] = frames * header.scale + header.offset
    brain = np.zeros(header.grid, dtype=bool)
    brain.flat[run.vox] = True
    run.close()
    centre = [round(float(c)) for c in np.argwhere(brain).mean(axis=0)]
    low, high = np.percentile(mean[brain], [1, 99])
    figure = Figure(figsize=(4.2, 1.6), layout="constrained", dpi=80)
    # Of a run of a single slice, that slice.
    planes = [axis for axis in range(3) if min(slice_image(mean, axis, centre[axis]).shape) > 1]
    widths = [slice_image(mean, axis, centre[axis]).shape[1] for axis in planes]
    columns = figure.subplots(1, len(planes), width_ratios=widths, squeeze=False)[0]
    for axis, axes in zip(planes, columns, strict=True):
        image = slice_image(mean, axis, centre[axis])
        axes.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
        inside = slice_image(brain, axis, centre[axis])
        axes.contour(inside, levels=[0.5], colors="#E69F00", linewidths=0.6)
        draw_letters(axes, axis)
    return figure


@styled
def token_mask_figure(tokens: TokenMask, narrow: bool = False) -> Figure:
    """Three orthogonal slices of the mean volume with the token grid; dropped tokens darkened.

    ``narrow`` puts the third below the others, for phones.
    """
    brain = np.isfinite(tokens.mean)
    centre = [round(float(c)) for c in np.argwhere(brain).mean(axis=0)]
    low, high = np.nanpercentile(tokens.mean, [1, 99])
    sizes = tokens.mean.shape
    widths = [sizes[1], sizes[0], sizes[0]]
    figure = Figure(figsize=(4.8, 5.2) if narrow else (8.0, 3.05), layout="constrained")
    if narrow:
        columns = list(figure.subplots(2, 2, width_ratios=widths[:2]).flat)
        columns.pop().set_axis_off()
    else:
        columns = list(figure.subplots(1, 3, width_ratios=widths))
    names = ("Sagittal", "Coronal", "Axial")
    for axis, axes in enumerate(columns):
        image = slice_image(tokens.mean, axis, centre[axis])
        axes.set(facecolor="#dfe8f1", anchor="N")  # so that bright cortex stands out
        shown = axes.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
        across, up = [size for i, size in enumerate(tokens.patch) if i != axis]
        dropped = ~slice_image(tokens.kept, axis, centre[axis])
        _patch_rectangles(axes, dropped, up, across, _DROPPED)
        axes.vlines(np.arange(0, image.shape[1] + 1, across) - 0.5, -0.5, image.shape[0] - 0.5)
        axes.hlines(np.arange(0, image.shape[0] + 1, up) - 0.5, -0.5, image.shape[1] - 0.5)
        for lines in axes.collections:
            lines.set(color="#E69F00", linewidth=0.8)
        draw_letters(axes, axis)
        axes.set_title(names[axis])
    figure.colorbar(shown, ax=columns, label="mean BOLD (source units)", panchor=False)
    end = "\n" if narrow else " "
    figure.suptitle(
        f"{tokens.share:.1%} of the tokens of {tokens.subject}{end}hold brain and are kept",
        fontsize=11,
        x=0.01,
        ha="left",
        weight="bold",
    )
    return figure
