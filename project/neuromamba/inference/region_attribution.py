"""Which regions and pathways a prediction of NeuroSSM rests on.

A scan enters as the inputs u_p [T_p, N] of its pathways p, each region z-scored over the scan. It
is compared with a baseline in which every region stays at its mean, which is 0 in all scans, those
of the training among them, because of the z-scores.

What is explained is one number of the scan, its score (``attribution.Objective``: the logit of a
class minus the mean of the others'). All methods return parts of it, in its units, for each region,
and for each region of each pathway:

- ``ig``: integrated gradients (Sundararajan, Taly and Yan 2017, ICML, eq. 1), u_p times the mean of
  the gradient along the straight line from 0 to u in all pathways at once, by Gauss-Legendre
  quadrature, summed over time. The parts add up to score(u) - score(0). Pathways are linear in the
  scan, so the sum over pathways is the integrated gradient with respect to the scan itself.
- ``gradxinput``: u_p times the gradient at u, summed over time.
- ``occlusion``: score(u) - score(u with a region at 0), of all pathways, or of one pathway alone.
  The parts of single pathways do not add up to that of all.

Shapes: N regions, P pathways, T_p frames of a pathway, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuromamba.inference.attribution import RANDOM_SEED, STEPS, Objective
from neuromamba.layers.packing import Packed
from neuromamba.neurossm.attribution import calibrated, pathway_drops, pathway_maps
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM

_FRAMES_AT_ONCE = 16_384  # of occluded copies of a scan


class RegionAttribution(NamedTuple):
    """The parts of a scan's score.

    Attributes:
        values: float64 [N], of the regions; signed.
        by_pathway: float64 [P, N].
        score, baseline_score: of the scan and of the baseline.
    """

    values: np.ndarray
    by_pathway: np.ndarray
    score: float
    baseline_score: float


class PathwayAttribution(NamedTuple):
    """Calibrated Pathway Attribution of a scan; see ``neurossm.attribution``.

    Attributes:
        cpa: float64 [N].
        dominant: int [N], 1 to P; 0 where the region has no attribution.
        drops: float64 [P], what the logit, or the value, loses without a pathway.
        weights: float64 [P].
    """

    cpa: np.ndarray
    dominant: np.ndarray
    drops: np.ndarray
    weights: np.ndarray


def randomised_model(config: NeuroSSMConfig, seed: int, device: torch.device) -> NeuroSSM:
    """A model of the same architecture with random weights, in evaluation mode.

    For the test of Adebayo et al. (2018, NeurIPS, "Sanity checks for saliency maps", section 3).
    The state of torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED + seed)
        return NeuroSSM(config).to(device).eval()


def attribute_regions(
    model: NeuroSSM,
    inputs: Sequence[Packed],
    objective: Objective,
    method: str,
    *,
    steps: int = STEPS,
    frames_at_once: int = _FRAMES_AT_ONCE,
) -> RegionAttribution:
    """Explain the score of one scan.

    Args:
        model: in evaluation mode.
        inputs: of its pathways, ``model.inputs`` of the scan.
        objective: what is explained.
        method: of ``EXPLAIN_METHODS``: "ig", "gradxinput" or "occlusion".
        steps: points of "ig".
        frames_at_once: bound of the frames of the copies that "occlusion" computes together.
    """
    if method == "ig":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        parts_PN = _weighted_gradients(model, inputs, objective, (nodes + 1) / 2, weights / 2)
        values = parts_PN.sum(0)
    elif method == "gradxinput":
        parts_PN = _weighted_gradients(model, inputs, objective, np.ones(1), np.ones(1))
        values = parts_PN.sum(0)
    else:
        assert method == "occlusion", method
        values, parts_PN = _occlusion(model, inputs, objective, frames_at_once)
    with torch.no_grad():
        at_zero = [Packed(torch.zeros_like(u.frames), u.lengths) for u in inputs]
        ends = [float(objective(model.fuse(model.encode(u)))) for u in (inputs, at_zero)]
    return RegionAttribution(values, parts_PN, *ends)


def _weighted_gradients(
    model: NeuroSSM,
    inputs: Sequence[Packed],
    objective: Objective,
    points: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """u_p times a weighted sum of gradients on the line from 0 to u, float64 [P, N]."""
    sums = [torch.zeros_like(u.frames, dtype=torch.float64) for u in inputs]
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        frames = [(point * u.frames).requires_grad_() for u in inputs]
        scaled = [Packed(x, u.lengths) for x, u in zip(frames, inputs, strict=True)]
        with torch.enable_grad():
            score = objective(model.fuse(model.encode(scaled))).sum()
            gradients = torch.autograd.grad(score, frames)
        for total, gradient in zip(sums, gradients, strict=True):
            total += weight * gradient
    parts = [(u.frames * total).sum(0) for u, total in zip(inputs, sums, strict=True)]
    return torch.stack(parts).cpu().numpy()


@torch.no_grad()
def _occlusion(
    model: NeuroSSM, inputs: Sequence[Packed], objective: Objective, frames_at_once: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the score loses without each region, float64 [N], and likewise by pathway [P, N]."""
    without = [
        _without_each_region(pathway, u, frames_at_once)
        for pathway, u in zip(model.pathways, inputs, strict=True)
    ]
    z_1PD = model.encode(inputs)
    full = objective(model.fuse(z_1PD))
    values = full - objective(model.fuse(torch.stack(without, dim=1)))
    parts = []
    for number, z_ND in enumerate(without):
        occluded = z_1PD.repeat(len(z_ND), 1, 1)
        occluded[:, number] = z_ND
        parts.append(full - objective(model.fuse(occluded)))
    return values.cpu().numpy(), torch.stack(parts).cpu().numpy()


def _without_each_region(pathway: torch.nn.Module, u: Packed, frames_at_once: int) -> Tensor:
    """z [N, D] of a pathway, with each region at 0 in turn."""
    length, regions = u.frames.shape
    together = max(1, frames_at_once // length)
    found = []
    for begin in range(0, regions, together):
        numbers = range(begin, min(begin + together, regions))
        copies = u.frames.repeat(len(numbers), 1).view(len(numbers), length, regions)
        for copy, number in zip(copies, numbers, strict=True):
            copy[:, number] = 0
        found.append(pathway(Packed(copies.flatten(0, 1), (length,) * len(numbers))))
    return torch.cat(found)


def attribute_pathways(
    model: NeuroSSM, inputs: Sequence[Packed], target: int, replacement: Tensor, gradient: str
) -> PathwayAttribution:
    """Calibrated Pathway Attribution of one scan.

    Args:
        model: in evaluation mode.
        inputs: of the pathways of the scan.
        target: class that is explained; of its logit, as CPA is defined; 0 of a regression.
        replacement: [P, D], what the features of an ablated pathway are replaced by.
        gradient: "integrated" or "single", see ``neurossm.attribution``.
    """
    chosen = torch.tensor([target], device=inputs[0].frames.device)
    with torch.no_grad():
        z = model.encode(inputs)
    drops = pathway_drops(model, z, chosen, replacement.to(z.device))
    maps = pathway_maps(model, inputs, chosen, gradient)
    _, drops, weights, cpa, dominant = calibrated(maps, drops)
    return PathwayAttribution(
        cpa=cpa[0].double().cpu().numpy(),
        dominant=dominant[0].cpu().numpy(),
        drops=drops[0].double().cpu().numpy(),
        weights=weights[0].double().cpu().numpy(),
    )
