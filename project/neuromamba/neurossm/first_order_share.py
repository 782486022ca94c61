"""How much of the members' logits NeuroSSM adds to those of its second-order pathway.

A constant share would help where the first-order pathways know something that correlations do not,
and harm where they only add noise. So it is chosen by stacked generalisation (Wolpert 1992): each
member is trained without a part of the training scans, its logits f of that part are beside the
logits t of a second-order pathway fitted without it, and

    share = argmin over w in [0, 1] of the mean cross entropy of softmax(t + w f)

over all training scans. No test scan is looked at. In a regression it is the least squared error
of (t + w f) / (1 + w).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from neuromamba.data.regions.batches import ScanDataset, ScanLoader
from neuromamba.data.regions.cohort import strata_of
from neuromamba.data.regions.scan import Scan
from neuromamba.layers.packing import Packed

_TOLERANCE = 1e-3  # of the share


def left_out_parts(scans: Sequence[Scan], members: int, seed: int) -> np.ndarray | None:
    """Which member is trained without each scan.

    Args:
        scans: of the training.
        members: of the model.
        seed: of the parts.

    Returns:
        int [S], the number of a member; None where there are not two parts that hold every class
        (of a regression, every quarter of the values).
        Subjects stay together. With more members than a class has subjects, the last members see
        all scans.
    """
    labels = strata_of(np.array([scan.label for scan in scans]))
    groups = np.array([scan.group for scan in scans])
    smallest = min(len(set(groups[labels == label])) for label in np.unique(labels))
    parts = min(members, smallest)
    if parts < 2:
        return None
    found = np.empty(len(scans), dtype=np.int64)
    cut = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    for number, (_, rows) in enumerate(cut.split(labels, labels, groups)):
        found[rows] = number
    return found


@torch.no_grad()
def logits_of_left_out(
    model: nn.Module,
    scans: Sequence[Scan],
    parts: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Logits float64 [S, classes] of every scan by the member that was trained without it.

    Args:
        model: trained; ``each`` gives the logits of its members.
        scans: whole ones are scored.
        parts: of ``left_out_parts``.
        batch_size: scans at a time.
        device: to compute on.
    """
    model = model.eval().to(device)
    found = []
    for batch in ScanLoader(ScanDataset(scans), batch_size):
        packed = Packed(batch["frames"].to(device), batch["lengths"])
        each: Tensor = model.each(packed)  # type: ignore[operator]  # [M, B, classes]
        found.append(each.double().cpu())
    return torch.cat(found, dim=1).numpy()[parts, np.arange(len(scans))]


def best_share(second: np.ndarray, first: np.ndarray, labels: np.ndarray) -> float:
    """The share w of ``second + w first`` with the least cross entropy, or squared error.

    Args:
        second: logits [S, classes] of second-order pathways; first: those of members. Both of scans
            that they were not fitted on.
        labels: int [S]; or float [S], standardised values.

    Returns:
        From 0 to 1, to three digits; exactly 0 where nothing is gained.
    """
    if labels.dtype.kind == "f":
        apart = first[:, 0] - second[:, 0]
        # (t + w f) / (1 + w) = t + b (f - t) with b = w / (1 + w), and the error is a parabola in b
        slope = float(((labels - second[:, 0]) * apart).sum())
        part = float(np.clip(slope / max(float((apart**2).sum()), 1e-12), 0, 0.5))
        return round(part / (1 - part), 3)
    rows = np.arange(len(labels))

    def loss(share: float) -> float:
        return float(-log_softmax(second + share * first, axis=1)[rows, labels].mean())

    # The mean cross entropy is convex in the share, so one search finds the least.
    found = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": _TOLERANCE})
    share = round(float(found.x), 3)
    return share if loss(share) < loss(0.0) else 0.0
