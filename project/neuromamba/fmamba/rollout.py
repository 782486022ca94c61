"""Generate frames after a prompt of true ones, with a backbone that was trained to predict tokens.

The backbone reads the prompt, predicts a token, reads its own prediction, predicts the next one ...
It carries its state (``stateful``), so nothing is read twice and memory does not depend on the
number of frames.

**Order.** In raster order (time fastest) each place in turn gets its prompt tokens and then its
generated ones, as it had all its tokens in training; the prompt of the next place follows. With
``--token_order space_first`` all places of one time follow those of the time before.

**Windows.** Positions exist for the times of the training window only, and the state starts anew
with each window. A rollout therefore fills one window; a longer one continues in another, whose
prompt is the last half window of frames, generated or true. Beyond the first window the model
continues from its own output, which it was never trained to do.

**Mask.** Voxels outside the brain are known: in every token that the model reads back they have
the background value, whatever was predicted for them.

Shapes: N brain voxels, S kept places (spatial patches), V values a token, F frames of a token,
T times (tokens of a place in a window), A voxels of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.training import PretrainConfig
from neuromamba.fmamba.backbone import Backbone, FMamba
from neuromamba.fmamba.stateful import StatefulBackbone
from neuromamba.fmamba.tokenizer import plan_compact

WINDOW_PROMPT = 0.5  # share of a window that is the prompt of each window after the first


def refuse_unless_generative(backbone: Backbone, objective: PretrainConfig | None) -> None:
    """Refuse models that do not predict later tokens.

    Args:
        backbone: of the checkpoint.
        objective: what the checkpoint says that it was trained for; None for nothing.

    Raises:
        UserInputError: it is no FMamba, has no next-token layer, or was trained on masked tokens.
    """
    if not isinstance(backbone, FMamba):
        raise UserInputError(
            f"MODEL: {backbone.config.display_name} (--model {backbone.config.model}) predicts no "
            f"later tokens, so it cannot generate frames. Give a checkpoint of neuromamba train "
            f"--model fmamba --pretraining --use_autoregressive."
        )
    if backbone.output_layer is None or objective is None:
        raise UserInputError(
            "MODEL: this checkpoint has no next-token layer, so it cannot generate frames: it was "
            "trained for a downstream task, or exported without the layer. Give a checkpoint of "
            "neuromamba train --pretraining --use_autoregressive."
        )
    if objective.objective != "autoregressive":
        raise UserInputError(
            f"MODEL: this checkpoint was trained to fill in {objective.description}, not to "
            f"predict later ones, so it cannot generate frames. Give a checkpoint of neuromamba "
            f"train --pretraining --use_autoregressive."
        )
    if backbone.config.token_grid[3] < 2:
        raise UserInputError(
            f"MODEL: a window of this model holds {backbone.config.img_size[3]} frames, which is "
            f"one token of a place, so there is nothing to predict at a place. Train with a longer "
            f"--sequence_length (or fewer frames in --patch_size)."
        )


@dataclass(frozen=True)
class RolloutPlan:
    """How a model's window is divided into prompt and generated times.

    Attributes:
        config: of the model.
        objective: what it was trained for.
    """

    config: ModelConfig
    objective: PretrainConfig

    @property
    def times(self) -> int:
        """T."""
        return self.config.token_grid[3]

    @property
    def frames_of_token(self) -> int:
        """F."""
        return self.config.patch_size[3]

    @property
    def ahead(self) -> int:
        """How many tokens of a place lie between a token and the one predicted from it."""
        return 1 if self.objective.predict == "next_token" else self.objective.predict_ahead

    @property
    def carried_times(self) -> int:
        """Times of the prompt of each window after the first (``WINDOW_PROMPT`` of the window)."""
        return max(1, self.ahead, int(self.times * WINDOW_PROMPT))

    def windows_for(self, prompt: int, frames: int) -> int:
        """Number of windows that a rollout takes; arguments in frames."""
        size = self.frames_of_token
        more = math.ceil(frames / size) - (self.times - prompt // size)
        return 1 + max(0, math.ceil(more / (self.times - self.carried_times)))

    def times_for(self, prompt: int, frames: int) -> int:
        """About how many times the backbone reads for a rollout; arguments in frames."""
        windows, size = self.windows_for(prompt, frames), self.frames_of_token
        if self.config.token_order == "raster":
            return self.times * windows
        return prompt // size + math.ceil(frames / size) + (windows - 1) * self.carried_times

    def check_prompt(self, frames: int) -> None:
        """Make sure that a prompt can be continued.

        Args:
            frames: of the prompt.

        Raises:
            UserInputError: no whole tokens; as long as a window; or shorter than the model
                predicts ahead.
        """
        size = self.frames_of_token
        low, high = size * self.ahead, size * (self.times - 1)
        if low <= frames <= high and frames % size == 0:
            return
        what = f"a multiple of {size}" if size > 1 else "a number"
        why = f"a token has {size} frame{'s' * (size > 1)}, a window {self.times * size}"
        if self.ahead > 1:
            why += f", and the model predicts {self.ahead} tokens ahead"
        raise UserInputError(
            f"--prompt: got {frames} frames, expected {what} from {low} to {high} ({why})."
        )

    def default_prompt(self) -> int:
        """Frames of half a window, in whole tokens."""
        return self.frames_of_token * self.carried_times


class FrameTokens:
    """Turns frames of brain voxels into the tokens of one time, and back.

    Args:
        voxels: [N] sorted flat C-order indices into the grid.
        config: grid, patch size and what to keep.
        background: scaled value outside the mask.
        device: of all tensors.

    Attributes:
        places: [S] position of each kept place in the spatial grid.
    """

    def __init__(
        self, voxels: Tensor, config: ModelConfig, background: float, device: torch.device
    ) -> None:
        plan = plan_compact([voxels], config)[0]
        inside = plan.source < len(voxels)
        row_of = torch.empty(len(voxels), dtype=torch.int64)
        row_of[plan.source[inside]] = inside.nonzero()[:, 0]
        self.places = plan.spatial_index.to(device)
        self.background, self.frames_of_token = background, config.patch_size[3]
        self._source, self._row_of = plan.source.to(device), row_of.to(device)
        self._outside = (~inside).to(device)

    def tokens(self, frames_FN: Tensor) -> Tensor:
        """Tokens [S, V] of the frames [F, N] of one time."""
        outside = frames_FN.new_full((len(frames_FN), 1), self.background)
        picked = torch.cat([frames_FN, outside], dim=1)[:, self._source]
        return picked.T.reshape(len(self.places), -1)

    def frames(self, tokens_SV: Tensor) -> Tensor:
        """Frames [F, N] of the tokens [S, V] of one time."""
        return tokens_SV.reshape(-1, self.frames_of_token)[self._row_of].T

    def at_places(self, image_N: Tensor) -> Tensor:
        """A static image [N] at each place, [S, A], and 0 outside the mask."""
        padded = torch.cat([image_N, image_N.new_zeros(1)])
        return padded[self._source].reshape(len(self.places), -1)

    def with_background(self, tokens: Tensor, place: slice) -> Tensor:
        """Tokens [s, V] of some places with the background value outside the mask."""
        outside = self._outside.view(len(self.places), -1)[place]
        voxels = tokens.reshape(*outside.shape, self.frames_of_token)
        return voxels.masked_fill(outside[..., None], self.background).reshape(tokens.shape)


class FrameGenerator:
    """A backbone, and where the voxels of a scan are in its tokens.

    Args:
        backbone: in evaluation mode, trained for ``objective``.
        objective: prediction of the next token or of a later one at the same place, and whether
            the output is the token or its difference from the one predicted from.
        voxels: [N] sorted flat C-order indices of the brain voxels.
        background: scaled value outside the mask.
        anatomy: [N] scaled mean image, for a model with ``--channels anatomy dynamics``.
        on_tokens: called with a number of tokens whenever the backbone has read them.

    Raises:
        UserInputError: the model does not predict later tokens, or there is no brain voxel.
    """

    def __init__(
        self,
        backbone: FMamba,
        objective: PretrainConfig,
        voxels: Tensor,
        background: float,
        *,
        anatomy: Tensor | None = None,
        on_tokens: Callable[[int], object] = lambda count: None,
    ) -> None:
        refuse_unless_generative(backbone, objective)
        self.config, self.objective = backbone.config, objective
        self.plan = RolloutPlan(backbone.config, objective)
        self.device = next(backbone.parameters()).device
        self.grid = FrameTokens(voxels, self.config, background, self.device)
        self.anatomy = None
        if self.config.anatomy:
            if anatomy is None:
                raise ValueError("the model has --channels anatomy dynamics: it needs anatomy")
            self.anatomy = self.grid.at_places(anatomy.to(self.device))
        self.times, self.ahead = self.plan.times, self.plan.ahead
        self._backbone, self._on_tokens = StatefulBackbone(backbone), on_tokens

    def rollout(self, prompt: Tensor, frames: int) -> Iterator[Tensor]:
        """Generate frames.

        Args:
            prompt: [P, N] scaled true frames, see ``RolloutPlan.check_prompt``.
            frames: how many to generate, 1 or more.

        Yields:
            The frames of one time after the other, [F, N]; the last may be fewer. The first frames
            do not depend on how many are asked for.

        Raises:
            UserInputError: the prompt cannot be continued.
        """
        self.plan.check_prompt(len(prompt))
        size = self.grid.frames_of_token
        known = [self.grid.tokens(part) for part in prompt.to(self.device).float().split(size)]
        left = frames
        while left > 0:
            new = self.fill_window(known, min(self.times - len(known), math.ceil(left / size)))
            for tokens in new:
                yield self.grid.frames(tokens)[:left]
                left -= size
            known = [*known, *new][-self.plan.carried_times :]

    @torch.no_grad()
    def fill_window(
        self, known: list[Tensor], count: int, forced: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Continue the known times of one window; the state starts anew.

        Args:
            known: [S, V] of each of the first times.
            count: further times to return.
            forced: true tokens [S, V] of all further times, which the model reads instead of its
                own predictions (teacher forcing).

        Returns:
            Predicted tokens [S, V] of each of ``count`` times after the known ones.
        """
        self._backbone.restart()
        if self.config.token_order == "raster":
            # All times of a place come before the next place, as in training, asked for or not.
            return self._place_by_place(known, forced)[:count]
        forced = None if forced is None else forced[:count]
        if self.objective.predict == "next_token":
            return self._token_by_token(known, count, forced)
        return self._time_by_time(known, count, forced)

    def _read(self, tokens: Tensor, time: int | Tensor, places: slice) -> Tensor:
        """Let the backbone read tokens of some places; returns the outputs of the last layer."""
        index = self.grid.places[places] * self.times + time
        anatomy = None if self.anatomy is None else self.anatomy[places]
        if anatomy is not None:
            anatomy = anatomy.expand(len(tokens), -1)
        prediction = self._backbone.extend(tokens, index, anatomy).prediction
        assert prediction is not None
        self._on_tokens(len(tokens))
        return prediction

    def _predicted(self, output: Tensor, source: Tensor, places: slice) -> Tensor:
        """The token from the output, and from the token that it was predicted from."""
        if self.objective.loss_on == "difference":
            output = output + source
        return self.grid.with_background(output, places)

    def _place_by_place(self, known: list[Tensor], forced: list[Tensor] | None) -> list[Tensor]:
        """Raster order: next token and same place are one, but for how far ahead it is."""
        begin, times = len(known), torch.arange(self.times, device=self.device)
        made: list[list[Tensor]] = [[] for _ in range(self.times - begin)]
        for place in range(len(self.grid.places)):
            here = slice(place, place + 1)
            tokens = [one[here] for one in known]
            outputs = list(self._read(torch.cat(tokens), times[:begin], here).split(1))
            for time in range(begin, self.times):
                source = time - self.ahead
                made[time - begin].append(self._predicted(outputs[source], tokens[source], here))
                read = made[time - begin][-1] if forced is None else forced[time - begin][here]
                tokens.append(read)
                outputs.append(self._read(read, time, here))
        return [torch.cat(rows) for rows in made]

    def _time_by_time(
        self, known: list[Tensor], count: int, forced: list[Tensor] | None
    ) -> list[Tensor]:
        """Places first, predictions of the same place: those of one time at once."""
        everywhere = slice(0, len(self.grid.places))
        tokens, made = list(known), []
        outputs: list[Tensor] = []
        for time in range(len(known) + count):
            if time >= len(known):
                source = time - self.ahead
                made.append(self._predicted(outputs[source], tokens[source], everywhere))
                tokens.append(made[-1] if forced is None else forced[len(made) - 1])
            if time + self.ahead < len(known) + count:  # else nothing is predicted from it
                outputs.append(self._read(tokens[time], time, everywhere))
        return made

    def _token_by_token(
        self, known: list[Tensor], count: int, forced: list[Tensor] | None
    ) -> list[Tensor]:
        """Places first, predictions of the next token in the sequence, one after the other."""
        places, made = len(self.grid.places), []
        for time, tokens in enumerate(known):
            output = self._read(tokens, time, slice(0, places))[-1:]
        for number in range(count):
            rows = []
            for place in range(places):
                here = slice(place, place + 1)
                rows.append(self._predicted(output, output, here))
                read = rows[-1] if forced is None else forced[number][here]
                output = self._read(read, len(known) + number, here)
            made.append(torch.cat(rows))
        return made
