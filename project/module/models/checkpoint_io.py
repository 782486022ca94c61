"""Reading weights: released files and our own, strictly and without running code from a file.

Released files are flat state dicts with the prefix ``_forward_module.model.``; ours are Lightning
checkpoints with a ``state_dict`` and, under ``CHECKPOINT_KEY``, what is needed to use the model
without its flags.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from project.module.config import UserInputError

CHECKPOINT_KEY = "neuromamba"
# Wrappers put around the backbone by DeepSpeed, DDP, torch.compile and by our LightningModules.
_WRAPPERS = ("_forward_module.", "module.", "_orig_mod.", "model.")


class CheckpointContents(NamedTuple):
    """A file's tensors under their canonical names, and its description if it has one.

    Attributes:
        state_dict: names without wrapper prefixes and with ``conv1d`` for ``conv_xBC``; names of
            the backbone without ``model.``, names of the head with ``head.``.
        card: plain containers written by our training, {} for a released file.
    """

    state_dict: dict[str, Tensor]
    card: dict[str, Any]


def read_file(path: str | Path, flag: str = "--load_model_path") -> dict[str, Any]:
    """Load a ``.pt``, ``.ckpt`` or ``.safetensors`` file; tensors and plain containers only.

    Raises:
        UserInputError: no such file, a directory, a damaged file, or one that needs to run code.
    """
    path = Path(path)
    if path.is_dir():
        raise UserInputError(
            f"{flag}: '{path}' is a folder. Name a file in it, such as checkpoints/best.ckpt; of a "
            f"DeepSpeed folder make one file first with its zero_to_fp32.py."
        )
    if not path.is_file():
        raise UserInputError(f"{flag}: there is no file '{path}'.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints; what matters is said below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        offender = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if offender:
            raise UserInputError(
                f"{flag}: '{path}' holds an object of type {offender.group(1)}, and loading it "
                f"would run code from the file. Only tensors and plain containers are read; save "
                f"its state dict alone, with torch.save(module.state_dict(), ...)."
            ) from None
        raise UserInputError(f"{flag}: '{path}' is not a torch checkpoint or is damaged.") from None
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserInputError(
            f"{flag}: '{path}' is damaged or not a checkpoint ({first})."
        ) from None
    if not isinstance(loaded, dict):
        raise UserInputError(
            f"{flag}: '{path}' holds a {type(loaded).__name__}, expected a state dict."
        )
    return loaded


def check_readable(path: str | Path, flag: str = "--load_model_path") -> None:
    """Make sure that a checkpoint, a file or a folder of DeepSpeed's, is there whole.

    Raises:
        UserInputError: it is missing, torn or incomplete.
    """
    path = Path(path)
    if not path.is_dir():
        _check_file(path, flag)
        return
    states = _first_shard(path, flag)
    folder, ranks = states.parent, read_file(states, flag).get("dp_world_size", 0)
    shards = sorted(folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"))
    if len(shards) != ranks:
        raise UserInputError(
            f"{flag}: '{path}' is damaged or not a checkpoint (the states of {len(shards)} of "
            f"{ranks} optimisers are there)."
        )
    for file in sorted(folder.glob("*.pt")):
        _check_file(file, flag)


def _check_file(path: Path, flag: str) -> None:
    """Compare the check sums of a file that torch wrote, or load what has none."""
    if not zipfile.is_zipfile(path):
        read_file(path, flag)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        wrong = str(error)
    if wrong:
        raise UserInputError(f"{flag}: '{path}' is damaged or not a checkpoint ({wrong}).")


def _first_shard(path: Path, flag: str) -> Path:
    """The file in a folder of DeepSpeed's that holds what is common to all ranks."""
    latest = path / "latest"
    if latest.is_file():
        folder = path / latest.read_text(encoding="utf-8", errors="replace").strip()
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
            if (folder / name).is_file():
                return folder / name
    raise UserInputError(
        f"{flag}: '{path}' is damaged or not a checkpoint (it is a folder without what DeepSpeed "
        f"writes: 'latest', and the folder that it names)."
    )


def read_training_state(path: str | Path, flag: str = "--resume_ckpt_path") -> dict[str, Any]:
    """What a checkpoint says of its training, without weights; a file or a folder of DeepSpeed's.

    Raises:
        UserInputError: as ``read_file`` and ``check_readable``.
    """
    path = Path(path)
    loaded = read_file(_first_shard(path, flag) if path.is_dir() else path, flag)
    heavy = ("state_dict", "optimizer_states", "module", "optimizer")
    return {key: value for key, value in loaded.items() if key not in heavy}


def canonical_name(key: str) -> str:
    """A name without wrappers: ``_forward_module.model.norm.weight`` -> ``norm.weight``."""
    stripped = True
    while stripped:
        stripped = False
        for wrapper in _WRAPPERS:
            if key.startswith(wrapper):
                key, stripped = key[len(wrapper) :], True
    return key.replace(".conv_xBC.", ".conv1d.")


def read_checkpoint(path: str | Path, flag: str = "--load_model_path") -> CheckpointContents:
    """Read a released or own checkpoint; see ``CheckpointContents``.

    Raises:
        UserInputError: as ``read_file``; also when there is no tensor, or a name occurs twice.
    """
    loaded = read_file(path, flag)
    state = loaded.get("state_dict", loaded)
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
        tensors[name] = value
    if not tensors:
        raise UserInputError(f"{flag}: '{path}' holds no tensors.")
    card = loaded.get(CHECKPOINT_KEY, {})
    return CheckpointContents(tensors, dict(card) if isinstance(card, Mapping) else {})


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
        UserInputError: lists the missing and unexpected keys and the differing shapes.
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
    module.load_state_dict(state)


def load_backbone(backbone: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load the backbone's weights from a released or own checkpoint; returns the file's card.

    The output layer and a head in the file are left aside when the backbone has no place for them.
    """
    contents = read_checkpoint(path)
    load_strictly(backbone, contents.state_dict, path, optional=("output_layer.", "head."))
    return contents.card
