"""Calibrated Pathway Attribution (CPA): which regions a decision rests on, through which pathway.

For a scan with pathway inputs u_p [N, T_p], target class c and its logit y_c:

    a_p[n, t] = u_p[n, t] * mean over 8 midpoints of d y_c / d u_p, all pathways scaled from 0 to u
    M_p[n]    = sum over t of ReLU(a_p[n, t]);   Mhat_p = M_p / sum over n of M_p
    drop_p    = y_c - y_c(z_p replaced by its mean over the training scans)
    weight_p  = ReLU(drop_p) / sum over p of ReLU(drop_p)
    CPA[n]    = sum over p of weight_p Mhat_p[n]
    dominant[n] = argmax over p of weight_p Mhat_p[n]

``single`` takes the gradient at u instead of the mean (activation times gradient), ``zero``
replaces z_p by 0: together the literal reading of the README.

Shapes: N regions, P pathways, D width, S scans, B of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuromamba.data.regions.batches import ScanDataset, ScanLoader
from neuromamba.data.regions.scan import Scan
from neuromamba.layers.packing import Packed
from neuromamba.neurossm.config import CPAConfig
from neuromamba.neurossm.model import NeuroSSM

MIDPOINTS = 8


class Attribution(NamedTuple):
    """Attributions of S scans, as numpy arrays.

    Attributes:
        logits: [S, classes].
        target: int [S], the class that is explained: the predicted one.
        path_maps: [S, P, N] Mhat; a pathway without positive attribution is all zero.
        drops: [S, P].
        weights: [S, P], adding up to 1, or all zero where no drop is positive.
        cpa: [S, N].
        dominant: int [S, N], 1 to P; 0 where the region has no attribution.
    """

    logits: np.ndarray
    target: np.ndarray
    path_maps: np.ndarray
    drops: np.ndarray
    weights: np.ndarray
    cpa: np.ndarray
    dominant: np.ndarray


def device_of(model: NeuroSSM) -> torch.device:
    """The device of the model."""
    return next(model.parameters()).device


def _batches(model: NeuroSSM, scans: Sequence[Scan], batch_size: int) -> list[Packed]:
    device = device_of(model)
    return [
        Packed(batch["frames"].to(device), batch["lengths"])
        for batch in ScanLoader(ScanDataset(scans), batch_size)
    ]


@torch.no_grad()
def mean_features(model: NeuroSSM, scans: Sequence[Scan], batch_size: int = 16) -> Tensor:
    """[P, D] mean of z over whole scans: what an ablated pathway is replaced by."""
    total = torch.zeros(len(model.config.pathways), model.config.features, dtype=torch.float64)
    for batch in _batches(model, scans, batch_size):
        total += model.encode(model.inputs(batch)).double().sum(0).cpu()
    return (total / len(scans)).float()


def attribute(
    model: NeuroSSM, scans: Sequence[Scan], replacement: Tensor, config: CPAConfig
) -> Attribution:
    """Explain the predictions for whole scans.

    Args:
        model: in evaluation mode.
        scans: S of them.
        replacement: [P, D] of ``mean_features``; not used with ``zero``.
        config: how.
    """
    assert not model.training
    if config.ablation == "zero":
        replacement = torch.zeros_like(replacement)
    replacement = replacement.to(device_of(model))
    found = [
        _attribute_batch(model, batch, replacement, config)
        for batch in _batches(model, scans, config.batch_size)
    ]
    return Attribution(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _attribute_batch(
    model: NeuroSSM, scans: Packed, replacement: Tensor, config: CPAConfig
) -> Attribution:
    inputs = [Packed(u.frames.detach(), u.lengths) for u in model.inputs(scans)]
    with torch.no_grad():
        z = model.encode(inputs)
        logits = model.fuse(z)
    target = logits.argmax(1)
    maps = pathway_maps(model, inputs, target, config.gradient)
    drops = pathway_drops(model, z, target, replacement)
    return Attribution(
        logits.float().cpu().numpy(),
        target.cpu().numpy(),
        *(array.cpu().numpy() for array in calibrated(maps, drops)),
    )


def pathway_attributions(
    model: NeuroSSM, inputs: Sequence[Packed], target: Tensor, gradient: str
) -> list[Tensor]:
    """a_p [L_p, N] of every pathway; integrated, they add up to y_c(u) - y_c(0).

    Sundararajan et al. 2017, with the straight way from 0 in all pathways at once.
    """
    shares = [1.0]
    if gradient == "integrated":
        shares = [(step + 0.5) / MIDPOINTS for step in range(MIDPOINTS)]
    total = [torch.zeros_like(u.frames) for u in inputs]
    for share in shares:
        scaled = [(share * u.frames).requires_grad_() for u in inputs]
        packed = [Packed(x, u.lengths) for x, u in zip(scaled, inputs, strict=True)]
        logits = model.fuse(model.encode(packed))
        chosen = logits.gather(1, target[:, None]).sum()
        for sum_, part in zip(total, torch.autograd.grad(chosen, scaled), strict=True):
            sum_ += part / len(shares)
    return [u.frames * part for u, part in zip(inputs, total, strict=True)]


def pathway_maps(
    model: NeuroSSM, inputs: Sequence[Packed], target: Tensor, gradient: str
) -> Tensor:
    """M [B, P, N]."""
    found = []
    for a, u in zip(pathway_attributions(model, inputs, target, gradient), inputs, strict=True):
        positive = a.clamp(min=0)
        found.append(torch.stack([part.sum(0) for part in positive.split(u.lengths)]))
    return torch.stack(found, dim=1)


@torch.no_grad()
def pathway_drops(model: NeuroSSM, z: Tensor, target: Tensor, replacement: Tensor) -> Tensor:
    """drop [B, P]: what the target's logit loses without each pathway."""
    whole = model.fuse(z).gather(1, target[:, None])
    drops = []
    for number in range(z.shape[1]):
        ablated = z.clone()
        ablated[:, number] = replacement[number]
        drops.append(whole - model.fuse(ablated).gather(1, target[:, None]))
    return torch.cat(drops, dim=1)


def calibrated(maps: Tensor, drops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mhat [B, P, N], drops [B, P], weights [B, P], CPA [B, N] and dominant [B, N]."""
    total = maps.sum(-1, keepdim=True)
    path_maps = torch.where(total > 0, maps / total.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)
    gains = drops.clamp(min=0)
    total = gains.sum(-1, keepdim=True)
    weights = torch.where(total > 0, gains / total.clamp(min=torch.finfo(gains.dtype).tiny), 0.0)
    shares = weights[..., None] * path_maps
    cpa = shares.sum(1)
    dominant = torch.where(cpa > 0, shares.argmax(1) + 1, 0)
    return path_maps, drops, weights, cpa, dominant
