"""The second-order pathway of NeuroSSM: logits linear in the tangent space of correlations.

The other pathways average over time, from which products of regions, and so correlations, cannot
be read cheaply. For a scan u [N, T] and the mean G of the training scans' correlations:

    C = shrunk correlations of u;   logits = <W_c, log(G^-1/2 C G^-1/2)> + b_c

with W and b of the logistic regression of the baseline ``Tangent`` (``linear.fit_second_order``),
or of its ridge regression of a standardised value. No gradient changes them, nor the share of the
other pathways' logits that is added to these (``first_order_share``). Where u is scaled down, as on
the way of an attribution from 0 to a scan,
C goes over into G, whose logits are b: a baseline of zeros stands for the average subject, not for
a brain without connections. Shapes: N regions, T frames, B scans, L packed frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuromamba.evaluation.connectivity import SHRINKAGE
from neuromamba.layers.packing import Packed

FIXED_SHARE = 0.5  # where it cannot be chosen: one member, a class of one subject, older weights
_ALIKE = 1e-6  # eigenvalues whose difference is below this share of them count as equal


class MatrixLogarithm(torch.autograd.Function):
    """Logarithm of a symmetric positive definite matrix [N, N].

    torch's gradient of eigenvectors is not finite where eigenvalues are equal, as all of them are
    for a scan without correlations. That of the logarithm is, by the formula of Daleckii and Krein:
    with C = V diag(l) V^T, the gradient is V (F * V^T grad V) V^T and

        F_ij = (log l_i - log l_j) / (l_i - l_j), or 1 / l_i where they are equal
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """V diag(log l) V^T."""
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.log()) @ vectors.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """See the class."""
        values, vectors = ctx.saved_tensors
        apart = values[:, None] - values
        sums = values[:, None] + values
        equal = apart.abs() < _ALIKE * sums
        logs = values.log()
        quotient = (logs[:, None] - logs) / torch.where(equal, 1.0, apart)
        factor = torch.where(equal, 2 / sums, quotient)
        return vectors @ (factor * (vectors.T @ gradients[0] @ vectors)) @ vectors.T


class SecondOrder(nn.Module):
    """[L, N] -> logits [B, classes], followed by zeros up to the width of the other pathways.

    Args:
        rois: N.
        classes: number of logits.
        width: of the result; at least ``classes``.
    """

    whitening: Tensor
    weight: Tensor
    bias: Tensor
    share: Tensor

    def __init__(self, rois: int, classes: int, width: int) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        # Random before the fit, as weights are: a check with random weights must not see zeros.
        weight = torch.randn(classes, rois, rois) / rois
        self.register_buffer("whitening", torch.eye(rois))
        self.register_buffer("weight", (weight + weight.transpose(1, 2)) / 2)
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("share", torch.tensor(FIXED_SHARE))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Weights of before the share was chosen do not hold it."""
        state_dict.setdefault(prefix + "share", torch.tensor(FIXED_SHARE))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, u: Packed) -> Tensor:
        """Logits of each scan, whose regions have mean 0 and deviation 1 over it, or are 0."""
        found = [self._of_scan(frames) for frames in u.frames.split(u.lengths)]
        logits = torch.stack(found).to(u.frames.dtype)
        return nn.functional.pad(logits, (0, self.width - logits.shape[1]))

    def _of_scan(self, frames: Tensor) -> Tensor:
        wide = frames.double()
        products = (1 - SHRINKAGE) / len(wide) * (wide.T @ wide)
        variance = wide.square().mean(0)
        present = (variance > 0).sum().clamp(min=1)
        share = (variance.sum() / present).clamp(max=1)  # 1 for a z-scored scan
        one = torch.eye(len(products), dtype=products.dtype, device=products.device)
        # As evaluation.connectivity does it, at a share of 1.
        shrunk = torch.where(one > 0, one * share, products)
        whitening = self.whitening.double()
        white = whitening @ shrunk @ whitening + (1 - share) * one  # G is the identity here
        logarithm: Tensor = MatrixLogarithm.apply(white)
        return (self.weight.double() * logarithm).sum((1, 2)) + self.bias
