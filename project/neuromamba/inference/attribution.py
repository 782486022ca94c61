"""Which voxels of a window a prediction rests on: three attribution methods for FMamba.

A window's tokens are compared with a baseline in which every brain voxel has the mean intensity:

- with a scaling of each voxel by its own statistics 0, the voxel's temporal mean (and 0, the mean
  of the brain, for the mean image of ``--channels anatomy dynamics``);
- with a scaling of the whole run the run's mean over brain voxels and frames, the same in all
  voxels: a brain without anatomy and without dynamics.

Values outside the brain mask are the same in the window and in the baseline, so they get nothing.

What is explained is one number of a window, its score (``Objective``). All methods return its
parts, in its units, for each voxel, summed over the frames of the window:

- ``ig``: integrated gradients (Sundararajan, Taly and Yan 2017, ICML, eq. 1), (x - x0) times the
  mean of the gradient along the straight line from the baseline x0 to the window x, by
  Gauss-Legendre quadrature. The parts add up to score(x) - score(x0); how far they miss it is the
  completeness error.
- ``gradxinput``: (x - x0) times the gradient at x; one step, and exact only for a linear model.
- ``occlusion``: score(x) - score(x with a cell at the baseline in all frames), where a cell is a
  cube of spatial patches; divided evenly among the cell's brain voxels (after Zeiler and Fergus
  2014, ECCV, section 4.2).

Shapes: L tokens of a window, V values a token, P places (spatial patches), A voxels of a patch,
T tokens in time at a place, F frames of a token, N brain voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from neuromamba.common.denormals import denormals_as_zeros
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import VOXEL_SCALINGS
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.normalisation import scaling_of
from neuromamba.data.windows.dataset import collate_windows
from neuromamba.fmamba.backbone import Backbone
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.tokenizer import CompactPlan, PackedTokens, plan_compact
from neuromamba.fmamba.window_tokens import pack_batch

STEPS = 32  # points on the line of integrated gradients
# Added to the seed of random weights: a training with the same seed began with others.
RANDOM_SEED = 10_000
_TOKENS_AT_ONCE = 16_384  # of occluded copies of a window
Score = Callable[[PackedTokens], Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The score of a window that is explained.

    Of a classification, the logit of a class minus the mean of the others' logits: what speaks for
    the class against the others (for two classes, the logarithm of the odds). Of a regression, the
    predicted value.

    Attributes:
        target: index of the class; None for a regression.
        center, scale: of a regression's target; the value is logit * scale + center.
    """

    target: int | None
    center: float = 0.0
    scale: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, outputs) logits -> float64 (B,) scores."""
        logits = logits.double()
        if self.target is None:
            return logits[:, 0] * self.scale + self.center
        chosen = logits[:, self.target]
        return chosen - (logits.sum(1) - chosen) / (logits.shape[1] - 1)


class Network(NamedTuple):
    """A downstream model: backbone and head, in evaluation mode, on one device."""

    backbone: Backbone
    head: nn.Module

    def score(self, objective: Objective) -> Score:
        """The function that gives the score (B,) of packed windows."""

        def of(packed: PackedTokens) -> Tensor:
            features = self.backbone.forward_tokens(packed).features
            return objective(self.head(features, packed))

        return of


def randomised_network(
    config: ModelConfig, head: HeadConfig, seed: int, device: torch.device
) -> Network:
    """A network of the same architecture with random weights throughout, backbone and head.

    For the model-parameter randomisation test of Adebayo et al. (2018, NeurIPS, "Sanity checks for
    saliency maps", section 3): a map that random weights give as well says nothing about what the
    model has learned. The state of torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED + seed)
        backbone = build_model(config, output_layer=False)
        made = build_head(head, config)
    return Network(backbone.to(device).eval(), made.to(device).eval())


class TokenWindow(NamedTuple):
    """The tokens of one window, its baseline, and the way back to voxels.

    Attributes:
        packed: the window's tokens.
        baseline: the same places at the baseline.
        plan: which voxel each value of a place is.
        voxels: N.
        times: T; the tokens are place after place, or time after time if ``by_time``.
        by_time: see ``ModelConfig.token_order``, "space_first".
    """

    packed: PackedTokens
    baseline: PackedTokens
    plan: CompactPlan
    voxels: int
    times: int
    by_time: bool

    def by_place(self, tokens_LV: Tensor) -> Tensor:
        """[L, V] of this window as [P, T, A, F]."""
        places = len(self.plan.spatial_index)
        lead = (self.times, places) if self.by_time else (places, self.times)
        found = tokens_LV.view(*lead, len(self.plan.source) // places, -1)
        return found.transpose(0, 1) if self.by_time else found

    def to_voxels(self, values_PA: Tensor) -> np.ndarray:
        """Values of the voxels of all places [P, A] as float64 [N]."""
        found = values_PA.new_zeros(self.voxels + 1)
        found[self.plan.source] = values_PA.flatten()  # the last one is the background
        return found[:-1].double().cpu().numpy()


def baseline_value(header: RunHeader, method: str) -> float:
    """Scaled intensity of brain voxels in the baseline; see the module's text.

    Args:
        header: of the run.
        method: of ``SCALING_METHODS``.
    """
    if method in VOXEL_SCALINGS:
        return 0.0
    scaling = scaling_of(header, method)
    return (header.mean - header.offset) / header.scale * scaling.gain + scaling.shift


def token_window(
    item: Mapping[str, Any], config: ModelConfig, device: torch.device, baseline: float
) -> TokenWindow:
    """Make the tokens of a window and those of its baseline.

    Args:
        item: as ``WindowDataset.__getitem__`` gives it.
        config: of the model.
        device: where they are made.
        baseline: of ``baseline_value``.

    Raises:
        UserInputError: the window has no brain voxel.
    """
    batch = collate_windows([item])
    plan = plan_compact(batch["vox"], config, batch["subject"])[0]
    plan = CompactPlan(*(tensor.to(device) for tensor in plan))
    for name in {"bold", "anatomy"} & batch.keys():
        batch[name] = [image.to(device) for image in batch[name]]
    packed = pack_batch(batch | {"plans": [plan]}, config)
    voxels, times = batch["vox"][0].numel(), config.token_grid[3]
    inside_PA = (plan.source < voxels).view(len(plan.spatial_index), -1)
    found = TokenWindow(packed, packed, plan, voxels, times, config.token_order != "raster")
    tokens = packed.tokens.clone()
    found.by_place(tokens).masked_fill_(inside_PA[:, None, :, None], baseline)
    empty = None if packed.anatomy is None else torch.zeros_like(packed.anatomy)
    return found._replace(baseline=packed._replace(tokens=tokens, anatomy=empty))


class WindowAttribution(NamedTuple):
    """The map of a window.

    Attributes:
        values: float64 [N], in the units of the score; signed.
        score, baseline_score: of the window and of its baseline.
    """

    values: np.ndarray
    score: float
    baseline_score: float

    @property
    def completeness_error(self) -> float:
        """What the parts miss of score - baseline_score, in the units of the score."""
        return float(self.values.sum()) - (self.score - self.baseline_score)


@contextmanager
def _without_weight_gradients(network: Network) -> Iterator[None]:
    """Within it only the input needs gradients, which saves time and memory."""
    needed = [p for part in network for p in part.parameters() if p.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)


@denormals_as_zeros()
def _weighted_gradients(
    score: Score, window: TokenWindow, points: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(x - x0) times a weighted sum of gradients on the line from x0 to x, float64 [N].

    ``points`` are positions on the line, from 0 (the baseline x0) to 1 (the window x). One forward
    and one backward pass at a time, so the memory is that of one window.
    """
    names = ["tokens"] if window.packed.anatomy is None else ["tokens", "anatomy"]
    start = [getattr(window.baseline, name) for name in names]
    steps = [getattr(window.packed, n) - x0 for n, x0 in zip(names, start, strict=True)]
    sums = [torch.zeros_like(step, dtype=torch.float64) for step in steps]
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        inputs = [(x0 + point * d).requires_grad_() for x0, d in zip(start, steps, strict=True)]
        packed = window.packed._replace(**dict(zip(names, inputs, strict=True)))
        with torch.enable_grad():
            gradients = torch.autograd.grad(score(packed).sum(), inputs)
        for total, gradient in zip(sums, gradients, strict=True):
            total += weight * gradient
    parts = [total * step for total, step in zip(sums, steps, strict=True)]
    values_PA = window.by_place(parts[0]).sum((1, 3))
    if len(parts) > 1:
        values_PA = values_PA + parts[1]
    return window.to_voxels(values_PA)


def integrated_gradients(score: Score, window: TokenWindow, steps: int = STEPS) -> np.ndarray:
    """Integrated gradients of a window, float64 [N], with ``steps`` points; see the module."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return _weighted_gradients(score, window, (nodes + 1) / 2, weights / 2)


def gradient_times_input(score: Score, window: TokenWindow) -> np.ndarray:
    """Gradient at the window times its difference from the baseline, float64 [N]."""
    return _weighted_gradients(score, window, np.ones(1), np.ones(1))


def cells_of(window: TokenWindow, config: ModelConfig, edge: int) -> Tensor:
    """The cell of each place, int64 [P], counted from 0 over the cells that hold a place.

    Args:
        window: whose places.
        config: grid of the places.
        edge: of a cell, in patches; cells are cut from the grid's first corner.
    """
    _, gy, gz, _ = config.token_grid
    place = window.plan.spatial_index
    x, y, z = place // (gy * gz), place // gz % gy, place % gz
    key = (x // edge * gy + y // edge) * gz + z // edge
    return key.unique(return_inverse=True)[1]


def occlusion(
    score: Score,
    window: TokenWindow,
    config: ModelConfig,
    *,
    edge: int = 1,
    tokens_at_once: int = _TOKENS_AT_ONCE,
) -> np.ndarray:
    """Occlude a window cell by cell, float64 [N]; see the module.

    Args:
        score, window: what is explained.
        config: of the model.
        edge: of a cell, in patches: 2 takes an eighth of the time and blurs the map over 2 patches.
        tokens_at_once: bound of the tokens of the copies that are computed together.
    """
    cell_P = cells_of(window, config, edge)
    cells, packed = int(cell_P.max()) + 1, window.packed
    length, together = packed.lengths[0], max(1, tokens_at_once // packed.lengths[0])
    inside_PA = (window.plan.source < window.voxels).view(len(cell_P), -1)
    drops = []
    with torch.no_grad():
        full = score(packed)
        for begin in range(0, cells, together):
            numbers = range(begin, min(begin + together, cells))
            tokens, anatomies = packed.tokens.repeat(len(numbers), 1), []
            for copy, number in zip(tokens.split(length), numbers, strict=True):
                chosen = cell_P == number
                places = window.by_place(copy)
                places[chosen] = window.by_place(window.baseline.tokens)[chosen]
                if packed.anatomy is not None and window.baseline.anatomy is not None:
                    hidden = chosen[:, None]
                    anatomies.append(torch.where(hidden, window.baseline.anatomy, packed.anatomy))
            copies = PackedTokens(
                tokens,
                packed.token_index.repeat(len(numbers)),
                packed.lengths * len(numbers),
                torch.cat(anatomies) if anatomies else None,
            )
            drops.append(full - score(copies))
    size = torch.zeros(cells, dtype=torch.float64, device=cell_P.device)
    size.index_add_(0, cell_P, inside_PA.sum(1).double())
    share = torch.cat(drops) / size.clamp(min=1)
    return window.to_voxels(share[cell_P][:, None] * inside_PA)


def explain_window(
    network: Network,
    objective: Objective,
    window: TokenWindow,
    method: str,
    *,
    steps: int = STEPS,
    edge: int = 1,
) -> WindowAttribution:
    """Explain the score of a window.

    Args:
        network: the model, in evaluation mode.
        objective: what is explained.
        window: of ``token_window``.
        method: of ``EXPLAIN_METHODS``: "ig", "gradxinput" or "occlusion".
        steps: points of "ig".
        edge: of the cells of "occlusion", in patches.
    """
    score = network.score(objective)
    with _without_weight_gradients(network):
        if method == "ig":
            values = integrated_gradients(score, window, steps)
        elif method == "gradxinput":
            values = gradient_times_input(score, window)
        else:
            assert method == "occlusion", method
            values = occlusion(score, window, network.backbone.config, edge=edge)
        with torch.no_grad():
            ends = [float(score(tokens)) for tokens in (window.packed, window.baseline)]
    return WindowAttribution(values, *ends)


def patch_means(values: np.ndarray, vox: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Give each brain voxel the mean over the brain voxels of its spatial patch, float64 [N].

    The model reads a patch through one linear embedding that all places share, so what it resolves
    is the part of a patch. How the part divides among the patch's voxels depends on that embedding
    only, much of which is what it was initialised with.

    Args:
        values: [N]; their sum over a patch is kept.
        vox: [N] flat C-order indices into the grid.
        config: grid and patch size.
    """
    index = np.stack(np.unravel_index(vox, config.img_size[:3]))
    place = np.ravel_multi_index(
        tuple(index // np.array(config.patch_size[:3])[:, None]), config.token_grid[:3]
    )
    count = np.bincount(place)
    return (np.bincount(place, values) / np.maximum(count, 1))[place]
