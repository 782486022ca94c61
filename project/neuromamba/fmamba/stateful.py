"""A backbone that reads one sequence in pieces and carries its state from piece to piece.

``FMamba.forward_tokens`` reads a whole window at once. Mamba2 does not need that: what a block
keeps of the tokens so far has a fixed size (``layers.ssd.stateful``). ``StatefulBackbone`` holds it
for all blocks, so a sequence can be continued with tokens that do not exist yet, as in a rollout,
and a long one can be processed with constant memory. However a sequence is cut into pieces, its
features are those of ``forward_tokens`` up to rounding.

Shapes: l tokens of a piece, V values a token, D width, A voxels of a spatial patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.mamba2 import ResidualBlock

PIECE = 4096  # tokens


class PieceOutput(NamedTuple):
    """What the backbone returns for a piece.

    Attributes:
        features: (l, D) after the final norm.
        prediction: (l, V) output of the next-token layer; None if it was not asked for, or the
            backbone has none.
    """

    features: Tensor
    prediction: Tensor | None


class StatefulBackbone:
    """The blocks' states of one sequence, and the backbone that moves them.

    Args:
        model: in evaluation mode; it is not changed.

    Attributes:
        seen: tokens so far.
    """

    def __init__(self, model: FMamba) -> None:
        if model.training:
            raise ValueError("expected a backbone in evaluation mode (model.eval())")
        self.model = model
        self.restart()

    def restart(self) -> None:
        """Forget all tokens: a new sequence begins."""
        self._states = [block.start() for block in self._blocks()]
        self.seen = 0

    def _blocks(self) -> Iterator[ResidualBlock]:
        return (cast(ResidualBlock, block) for block in self.model.mamba_layers)

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        token_index: Tensor,
        anatomy: Tensor | None = None,
        *,
        predict: bool = True,
    ) -> PieceOutput:
        """Read the next tokens of the sequence.

        Args:
            tokens: (l, V), in the model's token order, one or more.
            token_index: (l,) position of each token in the full grid, as in ``PackedTokens``.
            anatomy: (l, A) mean image at the place of each token, for a model with
                ``--channels anatomy dynamics``.
            predict: also compute the output of the next-token layer.

        Returns:
            Features and predictions of these tokens, from them and all tokens before.

        Raises:
            ValueError: the model needs the mean image, and it is not given.
        """
        x = self.model.embedder.of_rows(tokens, token_index, anatomy)
        for number, block in enumerate(self._blocks()):
            x, self._states[number] = block.mix_next(x, self._states[number])
        self.seen += len(tokens)
        features = self.model.norm(x)
        layer = self.model.output_layer if predict else None
        return PieceOutput(features, None if layer is None else layer(features))


def pieces_of(packed: PackedTokens, model: FMamba, size: int = PIECE) -> Iterator[PackedTokens]:
    """Cut the tokens of one sample into pieces for ``StatefulBackbone.extend``.

    Args:
        packed: one sample.
        model: its configuration says which place of ``packed.anatomy`` each token has.
        size: tokens of a piece.

    Returns:
        Pieces whose ``anatomy``, where there is one, has a row per token.
    """
    if len(packed.lengths) != 1:
        raise ValueError(f"expected one sample, got {len(packed.lengths)}")
    times = model.config.token_grid[3]
    row = torch.arange(len(packed.tokens), device=packed.tokens.device)
    places = -(-len(row) // times)
    place = row // times if model.config.token_order == "raster" else row % places
    for begin in range(0, len(row), size):
        chosen = slice(begin, begin + size)
        rows = packed.tokens[chosen]
        anatomy = None if packed.anatomy is None else packed.anatomy[place[chosen]]
        yield PackedTokens(rows, packed.token_index[chosen], (len(rows),), anatomy)
