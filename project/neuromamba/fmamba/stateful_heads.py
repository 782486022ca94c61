"""Downstream heads on features that come in pieces, beside ``stateful.StatefulBackbone``.

A linear head needs sums over the tokens of its window (or for "attention" weighted ones), or for
the deviation over time of "mean_sd" and "regions" two moments of each place; the Mamba head carries
the state of its blocks. Either has a size that does not depend on the number of tokens, so the
logits of a long window need no more memory than those of a short one.

Shapes: l tokens of a piece, D width, G places of the spatial grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from neuromamba.fmamba.heads import LinearHead, MambaHead
from neuromamba.fmamba.pooling import mean_of_cells
from neuromamba.layers.mamba2 import Mamba2


class StatefulHead(Protocol):
    """A head that reads the features of one window in pieces."""

    def extend(self, features: Tensor, token_index: Tensor) -> None:
        """Add the features (l, D) of the next tokens, with their positions (l,) in the grid."""

    def logits(self) -> Tensor:
        """The head's outputs (1, outputs) for the tokens so far."""


class _Mean:
    """Mean over the tokens; sums in fp64."""

    def __init__(self, head: LinearHead) -> None:
        self.head, self.total, self.count = head, torch.zeros(()), 0

    def extend(self, features: Tensor, token_index: Tensor) -> None:
        self.total = self.total.to(features.device) + features.double().sum(0)
        self.count += len(features)

    def logits(self) -> Tensor:
        return _classified(self.head, self.total / self.count)


class _Attention:
    """Mean weighted by the softmax of a score; rescaled whenever a larger score comes.

    Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3.
    """

    def __init__(self, head: LinearHead) -> None:
        self.head, self.total, self.weight = head, torch.zeros(()), torch.zeros(())
        self.largest = torch.tensor(-torch.inf)

    def extend(self, features: Tensor, token_index: Tensor) -> None:
        scores = self.head.score(features).double()
        largest = torch.maximum(self.largest.to(scores.device), scores.max())
        shrink = torch.exp(self.largest.to(scores.device) - largest)
        weights = torch.exp(scores - largest)
        self.weight = self.weight.to(scores.device) * shrink + weights.sum()
        self.total = self.total.to(scores.device) * shrink + (weights * features.double()).sum(0)
        self.largest = largest

    def logits(self) -> Tensor:
        return _classified(self.head, self.total / self.weight)


class _PlaceMoments:
    """Mean and deviation over time at each place; moments in fp64.

    Pieces are merged by Chan, Golub & LeVeque 1979, because E[x^2] - E[x]^2 cancels.
    """

    def __init__(self, head: LinearHead) -> None:
        self.head, config = head, head.model_config
        self.times, places = config.token_grid[3], math.prod(config.token_grid[:3])
        weight = head.classifier.weight
        self.count = weight.new_zeros(places, 1, dtype=torch.float64)
        self.mean, self.squares = weight.new_zeros(2, places, config.embed_dim, dtype=torch.float64)

    def extend(self, features: Tensor, token_index: Tensor) -> None:
        x, place = features.double(), token_index // self.times
        found, row = place.unique(return_inverse=True)
        count = torch.bincount(row)[:, None].double()
        mean = x.new_zeros(len(found), x.shape[1]).index_add(0, row, x) / count
        deviation = (x - mean[row]).square()
        before, moved = self.count[found], mean - self.mean[found]
        together = before + count
        self.mean[found] += moved * count / together
        self.squares[found] += moved.square() * before * count / together
        self.squares.index_add_(0, place, deviation)
        self.count[found] = together

    def logits(self) -> Tensor:
        found = self.count[:, 0].nonzero()[:, 0]
        count, mean = self.count[found], self.mean[found]
        deviation = (self.squares[found] / count).sqrt()
        if self.head.pool == "regions":
            values = torch.cat([mean, deviation], dim=1)
            return _classified(
                self.head, mean_of_cells(values, found, 1, self.head.model_config)[0]
            )
        over_tokens = (mean * count).sum(0) / count.sum()
        return _classified(self.head, torch.cat([over_tokens, deviation.mean(0)]))


class _Mamba:
    """The blocks of ``MambaHead`` with their states, and the last token."""

    def __init__(self, head: MambaHead) -> None:
        self.head = head
        self.states = [self._layer(block).start() for block in head.blocks]
        self.last: Tensor | None = None

    @staticmethod
    def _layer(block: nn.Module) -> Mamba2:
        return cast(Mamba2, cast(nn.ModuleList, block)[0])

    @torch.no_grad()
    def extend(self, features: Tensor, token_index: Tensor) -> None:
        x = features
        for number, block in enumerate(self.head.blocks):
            mixed, self.states[number] = self._layer(block).mix_next(x, self.states[number])
            x = cast(nn.ModuleList, block)[2](x + mixed)
        self.last = x[-1:].clone()

    @torch.no_grad()
    def logits(self) -> Tensor:
        assert self.last is not None
        return self.head.classifier(self.last)


@torch.no_grad()
def _classified(head: LinearHead, pooled: Tensor) -> Tensor:
    return head.classify(pooled.float()[None], head.classifier.weight.dtype)


_LINEAR: Mapping[str, Callable[[LinearHead], StatefulHead]] = {
    "mean": _Mean,
    "attention": _Attention,
    "mean_sd": _PlaceMoments,
    "regions": _PlaceMoments,
}


def stateful_head(head: nn.Module) -> StatefulHead:
    """Prepare a head for the features of one window in pieces.

    Args:
        head: from ``heads.build_head``, in evaluation mode.
    """
    if head.training:
        raise ValueError("expected a head in evaluation mode (head.eval())")
    if isinstance(head, MambaHead):
        return _Mamba(head)
    assert isinstance(head, LinearHead)
    return _LINEAR[head.pool](head)
