"""Skill within a place and over time: pre-training compared with controls of the same targets.

Tokens are brought into raster order with time fastest, so a place (a spatial patch) has all its
tokens in a row. A target token is a **step** if the token before it is of the same place, and a
**jump** if it is the first token of a new place. Copying the token before is a strong control for a
step and a meaningless one for a jump, whose error is mostly anatomy; they are therefore reported
apart. ``docs/pretraining.md`` has the formulas.

Shapes: L packed tokens, P places, G tokens of a place, V values of a token. The V values of a token
are S spatial ones, F frames and C channels, in this order; S * C of them are voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from neuromamba.config.model import ModelConfig
from neuromamba.evaluation.mean_loss import keep_fp64
from neuromamba.fmamba.tokenizer import PackedTokens, in_raster_order

_BLOCK_ROWS = 4096  # tokens of which fp64 copies are made at a time
_OVER_TIME = (1, 3)  # axes of tokens and of frames in (P, G, S, F, C)


class _SumsOverWindows(Metric):
    """Sums in fp64 that are added up over ranks; ``SUMS`` names them."""

    full_state_update = False
    SUMS: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens_of_place = config.token_grid[3]
        self.frames_of_token = config.patch_size[3]
        self.channels = config.in_chans
        for name in self.SUMS:
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    _apply = keep_fp64

    def _in_raster_order(self, packed: PackedTokens) -> tuple[PackedTokens, Tensor | None]:
        """The tokens in raster order, and the rows that they come from; None for the same rows."""
        rows = in_raster_order(packed, self.config)
        if rows is None:
            return packed, None
        return PackedTokens(packed.tokens[rows], packed.token_index[rows], packed.lengths), rows

    def _blocks(self, packed: PackedTokens, padding: Sequence[bool]) -> Iterator[tuple[int, int]]:
        """First row and end of blocks of whole places, of the windows that are not padding.

        Raises:
            ValueError: the tokens are not whole places in raster order.
        """
        places = packed.token_index.view(-1, self.tokens_of_place)
        raster = places[:, :1] + torch.arange(self.tokens_of_place, device=places.device)
        if (places[:, 0] % self.tokens_of_place).any() or not torch.equal(places, raster):
            raise ValueError("expected all tokens of a place, one after the other in time")
        size = max(1, _BLOCK_ROWS // self.tokens_of_place) * self.tokens_of_place
        start = 0
        for length, is_padding in zip(packed.lengths, padding, strict=True):
            if not is_padding:
                for begin in range(start, start + length, size):
                    yield begin, min(begin + size, start + length)
            start += length

    def _by_place(self, rows: Tensor) -> Tensor:
        """Tokens of whole places (L, V) as fp64 (P, G, S, F, C)."""
        shape = (-1, self.tokens_of_place, rows.shape[1] // self.frames_of_token // self.channels)
        return rows.double().view(*shape, self.frames_of_token, self.channels)


class AnatomyShare(_SumsOverWindows):
    """The share of the tokens' variance that lies between voxels, not over time within a window.

    ``anatomy_share`` is 1 - W / T: W the mean squared deviation of the values from the mean of
    their voxel over the frames of the window, T that from the mean of all values of all windows.
    It describes the data under their scaling, whatever the model.
    """

    SUMS = ("within_sum", "value_sum", "square_sum", "count")
    within_sum: Tensor
    value_sum: Tensor
    square_sum: Tensor
    count: Tensor

    def update(self, packed: PackedTokens, padding: Sequence[bool]) -> None:
        """Add the tokens of a batch; ``padding`` says which of its windows do not count."""
        packed, _ = self._in_raster_order(packed)
        for begin, end in self._blocks(packed, padding):
            tokens = self._by_place(packed.tokens[begin:end])
            self.within_sum += _demeaned(tokens).square().sum()
            self.value_sum += tokens.sum()
            self.square_sum += tokens.square().sum()
            self.count += tokens.numel()

    def compute(self) -> dict[str, Tensor]:
        """Return ``anatomy_share``; NaN for constant data."""
        total = self.square_sum - self.value_sum.square() / self.count
        return {"anatomy_share": 1 - _ratio(self.within_sum, total)}


class StepMetrics(_SumsOverWindows):
    """The error of the predicted next token of a place, beside two controls; and that at jumps.

    All losses are mean squared errors over the values of their targets. The controls of a step are
    persistence, the token before, and the mean, of each voxel over all frames of the window (known
    only in hindsight, so it is strict):

    - ``skill`` is 1 - step_loss / the smaller of step_persistence_loss and step_mean_loss;
    - ``dynamic_skill`` is the same after the mean over the steps of its place and window has been
      removed, voxel by voxel, from predictions, targets and both controls (the mean becomes 0).
      What is left is how the signal changes; a constant error of the level costs nothing.

    Which control is smaller is decided on the totals over all windows. Both are NaN where there are
    no steps, or where the better control is exact.

    Args:
        config: of the model.
        jumps: whether the model predicts the first token of a place from the place before; without
            it nothing is known of jumps.
        of_difference: whether the output is the difference of a token from the one before.
    """

    SUMS = (
        "step_sum",
        "step_persistence_sum",
        "step_mean_sum",
        "dynamic_sum",
        "dynamic_persistence_sum",
        "dynamic_mean_sum",
        "step_count",
        "jump_sum",
        "jump_persistence_sum",
        "jump_count",
    )
    step_sum: Tensor
    step_persistence_sum: Tensor
    step_mean_sum: Tensor
    dynamic_sum: Tensor
    dynamic_persistence_sum: Tensor
    dynamic_mean_sum: Tensor
    step_count: Tensor
    jump_sum: Tensor
    jump_persistence_sum: Tensor
    jump_count: Tensor

    def __init__(
        self, config: ModelConfig, *, jumps: bool = True, of_difference: bool = False
    ) -> None:
        super().__init__(config)
        self.jumps, self.of_difference = jumps, of_difference

    def update(
        self,
        packed: PackedTokens,
        x: Tensor,
        predict: Callable[[Tensor], Tensor],
        padding: Sequence[bool],
    ) -> None:
        """Add a batch.

        Args:
            packed: its tokens.
            x: (L, D); a token is predicted from the row of the token before it in raster order.
            predict: (rows, D) -> (rows, V).
            padding: which of its windows do not count.
        """
        packed, order = self._in_raster_order(packed)
        x = x if order is None else x[order]
        starts = {sum(packed.lengths[:number]) for number in range(len(packed.lengths))}
        for begin, end in self._blocks(packed, padding):
            first = max(begin - 1, 0)  # the row before the block predicts its first token
            before = packed.tokens[first : end - 1]
            errors = predict(x[first : end - 1]).double() - packed.tokens[first + 1 : end].double()
            moved = packed.tokens[first + 1 : end].double() - before.double()
            if self.of_difference:
                errors += before.double()
            if begin == 0:  # the very first token has no prediction; its row is not counted
                blank = errors.new_zeros(1, errors.shape[1])
                errors, moved = torch.cat([blank, errors]), torch.cat([blank, moved])
            self._add(packed.tokens[begin:end], errors, moved, jumps_from=int(begin in starts))

    def _add(self, tokens: Tensor, errors: Tensor, moved: Tensor, jumps_from: int) -> None:
        """Add whole places: tokens, and of each its error and its change from the one before.

        ``jumps_from`` is 1 where the first place is that of a window, to which no jump leads.
        """
        places, error, change = (self._by_place(rows) for rows in (tokens, errors, moved))
        steps, wanted = (slice(None), slice(1, None)), places[:, 1:]
        self.step_sum += error[steps].square().sum()
        self.step_persistence_sum += change[steps].square().sum()
        self.step_mean_sum += _demeaned(places)[steps].square().sum()
        if wanted.shape[1]:
            self.dynamic_sum += _demeaned(error[steps]).square().sum()
            self.dynamic_persistence_sum += _demeaned(change[steps]).square().sum()
            self.dynamic_mean_sum += _demeaned(wanted).square().sum()
        self.step_count += wanted.numel()
        jumps = slice(jumps_from, None), 0
        self.jump_sum += error[jumps].square().sum()
        self.jump_persistence_sum += change[jumps].square().sum()
        self.jump_count += error[jumps].numel()

    def compute(self) -> dict[str, Tensor]:
        """Return the two skills and the losses that they are made of, and those of jumps."""
        control = torch.minimum(self.step_persistence_sum, self.step_mean_sum)
        dynamic = torch.minimum(self.dynamic_persistence_sum, self.dynamic_mean_sum)
        found = {
            "skill": 1 - _ratio(self.step_sum, control),
            "dynamic_skill": 1 - _ratio(self.dynamic_sum, dynamic),
            "step_loss": _ratio(self.step_sum, self.step_count),
            "step_persistence_loss": _ratio(self.step_persistence_sum, self.step_count),
            "step_mean_loss": _ratio(self.step_mean_sum, self.step_count),
        }
        if not self.jumps:
            return found
        return found | {
            "jump_loss": _ratio(self.jump_sum, self.jump_count),
            "jump_persistence_loss": _ratio(self.jump_persistence_sum, self.jump_count),
        }


def _demeaned(places: Tensor) -> Tensor:
    """Values (P, G, S, F, C) less the mean of each voxel over tokens and frames."""
    # One axis after the other: torch reduces both at once ten times as slowly on a CPU.
    tokens, frames = _OVER_TIME
    total = places.sum(tokens, keepdim=True).sum(frames, keepdim=True)
    return places - total / (places.shape[tokens] * places.shape[frames])


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``; NaN where the whole is not above 0."""
    return torch.where(whole > 0, part / whole, torch.nan)
