"""Training losses, in fp32 or wider: an error for each token or sample, for exact weighting.

Shapes: L packed tokens, V values a token, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuromamba.config.model import ModelConfig
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.config.training import PretrainConfig
from neuromamba.fmamba.tokenizer import PackedTokens

# Rows of a block of token errors: on a CPU it should stay in the cache, elsewhere launches be few.
BLOCK_ROWS = {"cpu": 1024}
BLOCK_ROWS_ELSEWHERE = 32_768


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def next_token_targets(lengths: tuple[int, ...]) -> Tensor:
    """Rows of the tokens to predict: all but the first of each sample, [sum(lengths) - B]."""
    keep = torch.ones(sum(lengths), dtype=torch.bool)
    keep[torch.tensor((0, *lengths[:-1])).cumsum(0)] = False
    return keep.nonzero()[:, 0]


def next_token_errors(
    x: Tensor, tokens: Tensor, targets: Tensor, predict: Callable[[Tensor], Tensor]
) -> Tensor:
    """Squared error of each target token, averaged over its V values: [len(targets)].

    The prediction from ``x[i - 1]`` is compared with ``tokens[i]`` (paper, section 3.3); since no
    target is the first token of its sample, no pair crosses a border.

    Args:
        x: (L, D), what the predictions are made from.
        tokens: (L, V).
        targets: rows of the tokens to predict.
        predict: (rows, D) -> (rows, V), each row by itself.
    """
    # All rows but one a sample: computing these too costs less than gathering the others.
    return _row_errors(x, tokens[1:], predict)[targets - 1]


def masked_token_errors(
    x: Tensor, tokens: Tensor, targets: Tensor, predict: Callable[[Tensor], Tensor]
) -> Tensor:
    """Like ``next_token_errors``, for hidden tokens: each is predicted from its own position."""
    return _row_errors(x.index_select(0, targets), tokens.index_select(0, targets), predict)


def same_place_pairs(
    token_index: Tensor, lengths: tuple[int, ...], time_patches: int, ahead: int
) -> tuple[Tensor, Tensor]:
    """Pairs of tokens of one place: rows of the sources, and of the tokens to predict from them.

    A target is ``ahead`` tokens later than its source. Every token with such a token before it is a
    target, so no pair crosses a border between places or samples, whatever the order of the tokens.

    Args:
        token_index: (L,) position of each token in the full grid, T fastest.
        lengths: tokens of each sample.
        time_patches: tokens of the grid along T.
        ahead: 1 or more.

    Returns:
        Two int64 tensors of one length; targets in the order of the rows.
    """
    sources, targets, start = [], [], 0
    for index in token_index.split(lengths):
        row_at = index.new_full((int(index.max()) + 1,), -1)
        row_at[index] = torch.arange(start, start + len(index), device=index.device)
        later = index[index % time_patches >= ahead]
        before = row_at[later - ahead]
        sources.append(before[before >= 0])
        targets.append(row_at[later][before >= 0])
        start += len(index)
    return torch.cat(sources), torch.cat(targets)


def target_pairs(
    objective: PretrainConfig, packed: PackedTokens, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """Rows of the sources and of the targets of an autoregressive objective."""
    if objective.predict == "same_place":
        frames = config.token_grid[3]
        return same_place_pairs(packed.token_index, packed.lengths, frames, objective.predict_ahead)
    targets = next_token_targets(packed.lengths)
    return targets - 1, targets


def same_place_errors(
    x: Tensor,
    tokens: Tensor,
    sources: Tensor,
    targets: Tensor,
    predict: Callable[[Tensor], Tensor],
    loss_on: str = "token",
) -> Tensor:
    """Like ``next_token_errors``, for pairs: each target is predicted from row ``sources`` of x.

    With ``loss_on`` "difference" the prediction is compared with the target less its source token.
    """
    wanted = tokens.index_select(0, targets)
    if loss_on == "difference":
        wanted = wanted - tokens.index_select(0, sources)
    return _row_errors(x.index_select(0, sources), wanted, predict)


def _row_errors(x: Tensor, tokens: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """Error of the prediction from row i of ``x`` against row i of ``tokens``: [len(tokens)].

    Block after block, so that a prediction is still in the cache when it is compared. Rows of ``x``
    beyond the tokens are passed over here: cutting them off first would copy its gradient.
    """
    size = BLOCK_ROWS.get(x.device.type, BLOCK_ROWS_ELSEWHERE)
    whole, rest = divmod(len(tokens), size)
    sizes = [size] * whole + [rest]
    blocks = x.split([*sizes, len(x) - len(tokens)])[:-1]
    partners = tokens.split(sizes)
    errors = [
        _MeanSquares.apply(predict(rows), wanted)
        for rows, wanted in zip(blocks, partners, strict=True)
    ]
    return torch.cat(errors)


class _MeanSquares(torch.autograd.Function):
    """Mean over V of (prediction - tokens)^2, (rows, V) -> (rows,); tokens get no gradient.

    Written out because autograd would make the gradient in three passes and keep two copies.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, tokens: Tensor) -> Tensor:
        difference = _widened(prediction - tokens)
        ctx.save_for_backward(difference)
        ctx.dtype = prediction.dtype
        squares = torch.linalg.vector_norm(difference, dim=-1).square_()
        return squares.div_(difference.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        factor = gradient * (2 / difference.shape[-1])
        return (difference * factor[:, None]).to(ctx.dtype), None


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Cross entropy of (B, classes) logits against (B,) class indices: (B,).

    A sample's error is multiplied by the weight of its class. The mean over samples does not divide
    by these weights, so that it can be taken over any number of them.
    """
    errors = torch.nn.functional.cross_entropy(
        _widened(logits), target, label_smoothing=label_smoothing, reduction="none"
    )
    if class_weights is not None:
        errors = errors * errors.new_tensor(class_weights)[target]
    return errors


def mse(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Squared error of (B, 1) outputs against (B,) scaled targets: (B,); nothing to smooth."""
    assert class_weights is None
    wide = _widened(logits)[:, 0]
    return (wide - target.to(wide.dtype)).square()


LOSSES: Mapping[str, Callable[[Tensor, Tensor, float, Sequence[float] | None], Tensor]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
}
assert {task.loss for task in TASK_TYPES.values()} <= set(LOSSES)
