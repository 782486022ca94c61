"""DeepSpeed's checkpoint folders: ZeRO stage 1 to 3, any number of ranks, without DeepSpeed.

    best.ckpt/latest                         the name of the folder beside it
    best.ckpt/checkpoint/*_model_states.pt   stage 1, 2: one, the model as it computed (in bf16,
                                             say); stage 3: one a rank, with empty parameters
    best.ckpt/checkpoint/*_optim_states.pt   one a rank: its share of the fp32 weights

A rank's share, stage 1 and 2: parameters laid end to end for each group of the optimiser, padded,
and cut into as many pieces as there are ranks. Stage 3: every parameter is cut by itself. Frozen
parameters have no fp32 weights; they lie in the model states. (DeepSpeed's zero_to_fp32.py forgets
them in stage 1.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuromamba.checkpoints.files import check_file, damaged, read_file
from neuromamba.common.errors import UserInputError

_MODEL = "*_model_states.pt"
_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_STAGE_3 = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_model_states\.pt")
_WHOLE_MODEL = "mp_rank_00_model_states.pt"
_MODEL_PARALLEL = re.compile(r".*mp_rank_(?!00)\d+_model_states\.pt")
_FP32, _FP32_STAGE_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"


@dataclass(frozen=True)
class ZeroFolder:
    """A DeepSpeed checkpoint with all its files present.

    Attributes:
        path: as the user named it.
        flag: the flag that named it.
        stage: of ZeRO; 0 when it was switched off.
        states: of the first rank: module, names and shapes, and what Lightning stored.
        model_files: of stage 3 one a rank, else one.
        optim_files: one a rank; none in stage 0.
    """

    path: Path
    flag: str
    stage: int
    states: Mapping[str, Any]
    model_files: tuple[Path, ...]
    optim_files: tuple[Path, ...]

    @property
    def ranks(self) -> int:
        """Processes that saved it."""
        return int(self.states["dp_world_size"])

    def check(self) -> None:
        """Make sure that every file is whole and that they were saved together.

        Raises:
            UserInputError: one is damaged, or of another saving.
        """
        for file in self.model_files[1:]:
            check_file(file, self.flag)
        self.read_weights()

    def read_weights(self) -> dict[str, Tensor]:
        """Parameters, in fp32 where they were trained, and buffers, under the names in the files.

        Raises:
            UserInputError: files are damaged, or were not saved together.
        """
        shards = [read_file(file, self.flag) for file in self.optim_files]
        try:
            module: Mapping[str, Tensor] = self.states["module"]
            if self.stage == 3:
                weights = {name: module[name] for name in self.states["buffer_names"]}
                weights |= self._frozen_pieces()
            else:
                weights = dict(module)
                weights |= self.states.get("frozen_param_fragments") or {}
            if self.stage:
                weights |= self._trained([shard["optimizer_state_dict"] for shard in shards])
            for name, original in self.states["shared_params"].items():
                if original in weights:
                    weights[name] = weights[original]
            return {name: weight.detach() for name, weight in weights.items()}
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserInputError):
                raise
            raise damaged(self.path, self.flag, f"{type(error).__name__}: {error}") from None

    def _frozen_pieces(self) -> dict[str, Tensor]:
        """Frozen parameters of stage 3, of which every rank has a piece."""
        shapes: Mapping[str, Sequence[int]] = self.states.get("frozen_param_shapes") or {}
        if not shapes:
            return {}
        ranks = [read_file(file, self.flag) for file in self.model_files]
        pieces = [states["frozen_param_fragments"] for states in ranks]
        return {name: _joined([p[name] for p in pieces], shape) for name, shape in shapes.items()}

    def _trained(self, shards: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The fp32 weights of the optimiser, put together from all ranks."""
        for shard in shards:
            counts = shard.get("partition_count", self.ranks)
            most = max(counts) if isinstance(counts, list | tuple) else counts
            if most != self.ranks:
                raise mixed(
                    self.path, self.flag, f"one is of {most} ranks, the model of {self.ranks}"
                )
        if len({_steps_of(shard) for shard in shards}) > 1:
            raise mixed(self.path, self.flag, "their optimisers stand at different steps")
        shapes = self.states["param_shapes"]
        if self.stage == 3:
            return _join_parameters([shard[_FP32_STAGE_3] for shard in shards], shapes)
        paddings = shards[0].get("param_alignment_paddings")
        weights = _join_groups([shard[_FP32] for shard in shards], shapes, paddings)
        # The model computes with these weights in its own precision, to the last bit.
        module: Mapping[str, Tensor] = self.states["module"]
        apart = [k for k, w in weights.items() if not torch.equal(w.to(module[k].dtype), module[k])]
        if apart:
            raise mixed(
                self.path,
                self.flag,
                f"{len(apart)} weights differ from the model's, such as {apart[0]}",
            )
        return weights


def find_shards(path: Path, flag: str) -> Path | None:
    """The folder with the files of a DeepSpeed checkpoint; None if ``path`` is something else.

    Args:
        path: a folder: the checkpoint, or what is inside it.
        flag: the flag that named it.

    Raises:
        UserInputError: ``latest`` names a folder that is not there.
    """
    if any(path.glob(_MODEL)):
        return path
    latest = path / "latest"
    if latest.is_file():
        name = latest.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[\w.=-]+", name) and any((path / name).glob(_MODEL)):
            return path / name
        reason = f"'latest' names '{name[:40]}', where no file *_model_states.pt is"
        raise damaged(path, flag, reason)
    inside = sorted({file.parent for file in path.glob(f"*/{_MODEL}")})
    return inside[0] if len(inside) == 1 else None


def open_zero(path: Path, flag: str) -> ZeroFolder:
    """Look into a DeepSpeed checkpoint; weights are read later.

    Raises:
        UserInputError: it is none, or files are missing or damaged.
    """
    folder = find_shards(path, flag)
    if folder is None:
        raise damaged(path, flag, "no file *_model_states.pt in it")
    if any(_MODEL_PARALLEL.fullmatch(file.name) for file in folder.iterdir()):
        raise UserInputError(
            f"{flag}: '{path}' was trained with model parallelism, which is not read."
        )
    models = _by_rank(folder, _STAGE_3, path, flag)
    partitioned, whole = bool(models), folder / _WHOLE_MODEL
    if partitioned and whole.is_file():
        raise mixed(path, flag, "some are of ZeRO stage 3, some are not")
    models = models or {0: whole}
    if 0 not in models:
        raise damaged(path, flag, "the model states of rank 0 are missing")
    states = read_file(models[0], flag)
    wanted = {"module", "buffer_names", "param_shapes", "shared_params", "dp_world_size"}
    if absent := sorted(wanted - states.keys()):
        raise damaged(path, flag, f"no {', '.join(absent)} in {models[0].name}")
    ranks, shards = states["dp_world_size"], _by_rank(folder, _OPTIM, path, flag)
    if type(ranks) is not int or ranks < 1:
        raise damaged(path, flag, f"dp_world_size is {ranks!r}"[:80])
    stage = _stage_of(states, partitioned, bool(shards))
    if partitioned != (stage == 3):
        raise mixed(path, flag, f"they are of ZeRO stage {stage} and of another")
    for kind, files, expected in (
        ("model states", models, ranks if partitioned else 1),
        ("optimiser states", shards, ranks if stage else 0),
    ):
        # However many ranks a file names: what is missing shows among the first of them.
        wanted_ranks = range(expected)
        first = range(min(expected, len(files) + 5))
        if missing := [rank for rank in first if rank not in files][:5]:
            names = ", ".join(map(str, missing))
            raise damaged(path, flag, f"{kind} of rank {names} are missing, of {expected}")
        if further := sorted(rank for rank in files if rank not in wanted_ranks):
            raise damaged(path, flag, f"{kind} of rank {further[0]}, but {expected} saved it")
    for rank in range(1, len(models)):
        other = read_file(models[rank], flag, lazily=True)  # its tensors may be left where they are
        if other.get("global_steps") != states.get("global_steps"):
            raise mixed(path, flag, f"{models[rank].name} is of another step than the first rank's")
    return ZeroFolder(path, flag, stage, states, _in_order(models), _in_order(shards))


def mixed(path: Path, flag: str, why: str) -> UserInputError:
    """The error for files of different savings."""
    return UserInputError(
        f"{flag}: the files of '{path}' were not saved together ({why}), as when a run was killed "
        f"while it saved. Use another checkpoint of the run."
    )


def _in_order(files: Mapping[int, Path]) -> tuple[Path, ...]:
    return tuple(files[rank] for rank in sorted(files))


def _by_rank(folder: Path, pattern: re.Pattern[str], path: Path, flag: str) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for file in folder.iterdir():
        if match := pattern.fullmatch(file.name):
            rank = int(match[1])
            if rank in found:
                raise mixed(path, flag, f"{file.name} beside {found[rank].name}")
            found[rank] = file
    return found


def _stage_of(states: Mapping[str, Any], partitioned: bool, optimised: bool) -> int:
    """Read the stage from DeepSpeed's stored configuration, else from the kinds of files."""
    config = states.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    if isinstance(zero, Mapping):
        found = zero.get("stage", 0)
        return found if type(found) is int else -1  # is compared with the files, and refused
    return 3 if partitioned else int(optimised)


def _steps_of(shard: Mapping[str, Any]) -> float | None:
    """Steps taken by a rank's optimiser; None where it does not count (SGD)."""
    inner = shard.get("base_optimizer_state", shard.get("optimizer_state_dict"))
    state = inner.get("state") if isinstance(inner, Mapping) else None
    steps = [float(s["step"]) for s in (state or {}).values() if "step" in s]
    return max(steps, default=None)


def _joined(pieces: Iterable[Tensor], shape: Sequence[int]) -> Tensor:
    """Pieces of all ranks end to end, padding cut off."""
    flat = torch.cat([piece.flatten() for piece in pieces])
    return flat[: math.prod(shape)].reshape(tuple(shape)).clone()


def _join_groups(
    shards: Sequence[Sequence[Tensor]],
    groups: Sequence[Mapping[str, Sequence[int]]],
    paddings: Sequence[Sequence[int]] | None,
) -> dict[str, Tensor]:
    """Stage 1 and 2.

    Args:
        shards: [rank][group], flat.
        groups: name -> shape for each group.
        paddings: for each group and parameter what follows it; None for nothing.
    """
    weights = {}
    for number, shapes in enumerate(groups):
        flat, start = torch.cat([shard[number].flatten() for shard in shards]), 0
        after = paddings[number] if paddings else [0] * len(shapes)
        for (name, shape), padding in zip(shapes.items(), after, strict=True):
            end = start + math.prod(shape)
            weights[name] = flat[start:end].reshape(tuple(shape)).clone()
            start = end + padding
        aligned = 2 * len(shards)  # DeepSpeed fills a group up to a multiple of it
        if math.ceil(start / aligned) != math.ceil(len(flat) / aligned):
            raise ValueError(f"{len(flat)} weights for parameters of {start}")
    return weights


def _join_parameters(
    shards: Sequence[Sequence[Tensor]], groups: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, Tensor]:
    """Stage 3; arguments as above."""
    flats = [torch.cat([group.flatten() for group in shard]) for shard in shards]
    weights, start = {}, 0
    for shapes in groups:
        for name, shape in shapes.items():
            end = start + math.ceil(math.prod(shape) / len(shards))
            weights[name] = _joined([flat[start:end] for flat in flats], shape)
            start = end
    if any(len(flat) != start for flat in flats):
        raise ValueError(f"{[len(flat) for flat in flats]} weights for pieces of {start}")
    return weights
