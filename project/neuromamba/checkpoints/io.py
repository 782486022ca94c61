"""Reading weights: released files and our own, strictly and without running code from a file.

Released files are flat state dicts with the prefix ``_forward_module.model.``; ours are Lightning
checkpoints with a ``state_dict`` and, under ``CHECKPOINT_KEY``, what is needed to use the model
without its flags: the metadata. Under DeepSpeed a checkpoint is a folder (``zero``), and an
exported one may be a safetensors file, where they are among the entries of its header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuromamba.checkpoints.files import SHARD, damaged, read_file, read_safetensors_entries
from neuromamba.checkpoints.metadata import checked_metadata
from neuromamba.checkpoints.paths import find_checkpoint, safetensors_in
from neuromamba.checkpoints.zero import find_shards, open_zero
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import SAFETENSORS
from neuromamba.layers.lora import merged

CHECKPOINT_KEY = "neuromamba"
EXPORT_KEY = "export"  # where an exported file comes from
REGIONS_KEY = "neurossm"  # what a model of regional series says of itself (neurossm.model_file)
# Wrappers put around the backbone by DeepSpeed, DDP, torch.compile, peft, other programs and by
# our LightningModules.
_WRAPPERS = ("_forward_module.", "module.", "_orig_mod.", "base_model.", "backbone.", "model.")
_COMPILED = "._orig_mod."  # of torch.compile around a part
# Where other programs keep the weights in their checkpoints.
_STATES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "ema")


class CheckpointContents(NamedTuple):
    """A checkpoint's tensors under their canonical names, and its metadata if it has some.

    Attributes:
        state_dict: names without wrapper prefixes and with ``conv1d`` for ``conv_xBC``; names of
            the backbone without ``model.``, names of the head with ``head.``.
        metadata: plain containers that describe model, data and task; {} for a released file.
        origin: kind of the checkpoint, in words.
        progress: "epoch" and "global_step" where the checkpoint holds them.
        export: origin of an exported file, {} for others.
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, Any]
    origin: str = ""
    progress: Mapping[str, int] = {}
    export: Mapping[str, Any] = {}


class TrainingState(NamedTuple):
    """The state of a training that Lightning stored beside the weights.

    Attributes:
        contents: loops, callbacks, schedulers, the metadata ...; of a file also its state dict and
            optimisers.
        zero_stage: of a DeepSpeed folder; 0 for a file, which other strategies write.
        ranks: processes that wrote a DeepSpeed folder; for a file what its metadata say, else 0.
    """

    contents: dict[str, Any]
    zero_stage: int
    ranks: int


def canonical_name(key: str) -> str:
    """Return a name without wrappers: ``_forward_module.model.norm.weight`` -> ``norm.weight``."""
    stripped = True
    while stripped:
        stripped = False
        for wrapper in _WRAPPERS:
            if key.startswith(wrapper):
                key, stripped = key[len(wrapper) :], True
    return key.replace(_COMPILED, ".").replace(".conv_xBC.", ".conv1d.")


def names_in_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename from canonical names to those in our LightningModules, ``model.`` first."""
    return {k if k.startswith("head.") else f"model.{k}": value for k, value in state.items()}


def read_checkpoint(
    path: str | Path, flag: str = "--load_model_path", as_trained: bool = False
) -> CheckpointContents:
    """Read a released or own checkpoint, or one of a run folder; see ``CheckpointContents``.

    Args:
        path: the checkpoint, or a run folder.
        flag: the flag that named it.
        as_trained: keep LoRA's updates beside the weights, as a training needs them; by default
            they are added to the weights.

    Raises:
        UserInputError: as ``find_checkpoint``, ``read_file`` and ``open_zero``; also when there is
            no tensor, a name occurs twice, or a value is not finite.
    """
    path = find_checkpoint(path, flag)
    if path.is_dir() and find_shards(path, flag):
        folder = open_zero(path, flag)
        loaded, state = dict(folder.states), folder.read_weights()
        origin = f"DeepSpeed, ZeRO stage {folder.stage}, {folder.ranks} rank(s)"
    elif path.is_dir() or path.suffix == SAFETENSORS:
        files = safetensors_in(path, flag) if path.is_dir() else [path]
        loaded, state = read_safetensors_entries(files[0], flag), {}
        if REGIONS_KEY in loaded:
            raise of_regions(path, flag)
        for file in files:
            state |= read_file(file, flag)
        origin = "safetensors"
    else:
        if SHARD.fullmatch(path.name):
            raise UserInputError(
                f"{flag}: '{path}' is one file of a DeepSpeed checkpoint; name its folder."
            )
        loaded = read_file(path, flag)
        state, origin = _state_in(loaded)
    progress = ("epoch", "global_step")
    weights = _canonical(state, path, flag)
    metadata = checked_metadata(loaded.get(CHECKPOINT_KEY, {}), weights, path, flag)
    return CheckpointContents(
        weights if as_trained else merged(weights, metadata),
        metadata,
        origin,
        {name: loaded[name] for name in progress if type(loaded.get(name)) is int},
        _containers(loaded, EXPORT_KEY),
    )


def of_regions(path: Path, flag: str) -> UserInputError:
    """The error that refuses a model of regional series; ``flag`` named it."""
    return UserInputError(
        f"{flag}: '{path}' is a model of regional series (NeuroSSM); only neuromamba check, "
        f"predict, embed, explain and export use one."
    )


def _state_in(loaded: Mapping[str, Any]) -> tuple[Any, str]:
    """The weights in what a file holds, and the kind of the file in words."""
    if "state_dict" in loaded:
        return loaded["state_dict"], "Lightning"
    for name in _STATES:
        inside = loaded.get(name)
        if isinstance(inside, Mapping) and any(isinstance(v, Tensor) for v in inside.values()):
            return inside, f"weights under '{name}'"
    return loaded, "state dict"


def _containers(loaded: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = loaded.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _canonical(state: Any, path: Path, flag: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise UserInputError(
            f"{flag}: '{path}' holds a {type(state).__name__} as its state dict, expected names "
            f"with tensors."
        )
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        name = canonical_name(key)
        if name in tensors:
            raise UserInputError(f"{flag}: '{path}' holds the weights '{name}' twice.")
        _refuse_claimed(name, value, path, flag)
        tensors[name] = value
    if not tensors:
        raise UserInputError(f"{flag}: '{path}' holds no tensors.")
    _refuse_not_finite(tensors, path, flag)
    return tensors


def _refuse_claimed(name: str, value: Tensor, path: Path, flag: str) -> None:
    """Refuse a tensor that has less memory behind it than its shape says."""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise damaged(path, flag, f"'{name}' is no plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise damaged(path, flag, f"'{name}' of {list(value.shape)} has fewer values than that")


def _is_finite(value: Tensor) -> bool:
    # torch cannot ask numbers of one byte.
    wide = value.float() if value.is_floating_point() and value.element_size() == 1 else value
    return bool(wide.isfinite().all())


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: str | Path, flag: str) -> None:
    lost = [name for name, value in tensors.items() if not _is_finite(value)]
    if lost:
        raise UserInputError(
            f"{flag}: '{path}' holds values that are not finite in {len(lost)} of {len(tensors)} "
            f"tensors, such as '{lost[0]}': its training diverged, or numbers overflowed when it "
            f"was converted. Use an earlier checkpoint."
        )


def read_metadata(path: str | Path, flag: str = "--load_model_path") -> dict[str, Any]:
    """Read the metadata alone; of a DeepSpeed folder the weights are left unread.

    Raises:
        UserInputError: as ``read_checkpoint``, as far as the file is read.
    """
    path = find_checkpoint(path, flag)
    if path.is_dir() and find_shards(path, flag):
        states = open_zero(path, flag).states
        return checked_metadata(states.get(CHECKPOINT_KEY, {}), {}, path, flag)
    return read_checkpoint(path, flag).metadata


def read_training_state(path: str | Path, flag: str = "--resume_ckpt_path") -> TrainingState:
    """Read what a training is continued from.

    Raises:
        UserInputError: not readable, or weights without the state of a training.
    """
    path = Path(path)
    if path.is_dir() and find_shards(path, flag):
        folder = open_zero(path, flag)
        state = TrainingState(dict(folder.states), folder.stage, folder.ranks)
        whole = folder.stage > 0
    else:
        contents = read_file(find_checkpoint(path, flag), flag)
        state = TrainingState(contents, 0, _containers(contents, CHECKPOINT_KEY).get("ranks", 0))
        whole = "optimizer_states" in contents
    if not whole or "pytorch-lightning_version" not in state.contents:
        raise UserInputError(
            f"{flag}: '{path}' holds weights alone, not the state of a training; start from "
            f"them with --load_model_path."
        )
    return state


def check_readable(path: str | Path, flag: str = "--resume_ckpt_path") -> None:
    """Make sure that a checkpoint is complete, undamaged and written by one save.

    Every byte is read once (0.2 s for 150 MB), so only one of several ranks should call it.

    Args:
        path: a file, or a DeepSpeed or safetensors folder.
        flag: the flag that named it.

    Raises:
        UserInputError: it is missing, incomplete or damaged.
    """
    path = Path(path)
    files = safetensors_in(path, flag) if path.is_dir() else [path]
    if not files:
        open_zero(path, flag).check()
    for file in files:
        read_file(file, flag)  # check sums do not reveal another format or a foreign type


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: str | Path,
    optional: Iterable[str] = (),
    flag: str = "--load_model_path",
) -> None:
    """Copy ``state`` into ``module``; every difference in keys or shapes is an error.

    Args:
        module: receives the weights.
        state: canonical names.
        path: the file, for messages.
        optional: prefixes that the file may hold although the module does not (the output layer
            of pre-training, when a downstream model loads its backbone).
        flag: the flag that named the file.

    Raises:
        UserInputError: lists the missing and unexpected keys and the differing shapes; or a weight
            is not finite in the module's precision.
    """
    own = module.state_dict()
    allowed = tuple(optional)
    state = {k: v for k, v in state.items() if k in own or not k.startswith(allowed or ("\0",))}
    shapes = [
        f"{key} is {list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    problems = []
    if shapes:
        problems.append(
            f"{len(shapes)} tensors of another size ({'; '.join(shapes[:3])}"
            f"{'; ...' if len(shapes) > 3 else ''})"
        )
    if missing:
        problems.append(f"missing keys: {', '.join(missing)}")
    if unexpected:
        problems.append(f"unexpected keys: {', '.join(unexpected)}")
    if problems:
        raise UserInputError(
            f"{flag}: '{path}' does not fit the model: {'. '.join(problems)}. Check --embed_dim, "
            f"--depth, --patch_size, --img_size and --mamba_pe_method."
        )
    # A file may be in another precision: 1e300 is a number there, and infinite in the model.
    rounded = {name: value.to(own[name].dtype) for name, value in state.items()}
    _refuse_not_finite(rounded, path, flag)
    module.load_state_dict(state)


def load_backbone(
    backbone: nn.Module, path: str | Path, flag: str = "--load_model_path"
) -> dict[str, Any]:
    """Load the backbone's weights from a released or own checkpoint; return its metadata.

    The output layer and a head in the file are ignored where the backbone has none.
    """
    contents = read_checkpoint(path, flag)
    load_strictly(backbone, contents.state_dict, path, ("output_layer.", "head."), flag)
    return contents.metadata
