"""One checkpoint file: tensors and plain containers only, and nothing that is damaged.

No code from a file is ever run (``torch.load(weights_only=True)``). torch itself does not notice
changed bytes inside a tensor; the check sums that its files carry are compared here.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.similar_paths import did_you_mean
from neuromamba.config.names import SAFETENSORS

# How the files of a DeepSpeed folder are named; one of them is not a checkpoint by itself.
SHARD = re.compile(r"(bf16_|fp16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")


class _Unread:
    """Takes the place of an object whose content is not needed; keeps nothing, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Unread:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# What DeepSpeed's files hold beside tensors and containers. getattr: how Python 3.11.0 to 3.11.3
# stored the members of an enumeration.
_UNREAD = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "builtins.getattr",
)


def _stand_in(path: str) -> type[_Unread]:
    module, _, name = path.rpartition(".")
    return type(name, (_Unread,), {"__module__": module, "__qualname__": name})


_STAND_INS: list[Any] = [_stand_in(path) for path in _UNREAD]


@contextmanager
def _admitting(globals_: list[Any]) -> Iterator[None]:
    """Have torch admit these and no others.

    Where a process has started DeepSpeed, its own classes are admitted under the same names; which
    of two torch takes depends on their places in memory.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(globals_)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_file(
    path: str | Path, flag: str = "--load_model_path", lazily: bool = False
) -> dict[str, Any]:
    """Load a ``.pt``, ``.ckpt`` or ``.safetensors`` file; tensors and plain containers only.

    Args:
        path: the file.
        flag: the flag that named it.
        lazily: leave the tensors in the file where its format allows it, check sums unread; copy
            what is kept for longer.

    Raises:
        UserInputError: no such file, a directory, a damaged file, or one that needs to run code.
    """
    path = Path(path)
    if path.is_dir():
        raise UserInputError(f"{flag}: '{path}' is a folder, expected a file.")
    if not path.is_file():
        raise UserInputError(f"{flag}: there is no file '{path}'.{did_you_mean(path)}")
    if not lazily:
        check_file(path, flag)
    try:
        if lazily and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_records(archive, path, flag)
        if path.suffix == SAFETENSORS:
            return dict(load_file(path))
        with warnings.catch_warnings(), _admitting(_STAND_INS):
            warnings.simplefilter("ignore")  # torch's hints; what matters is said below
            mapped = lazily and zipfile.is_zipfile(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserInputError:
        raise
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
        raise damaged(path, flag, why_unread(error)) from None
    if not isinstance(loaded, dict):
        raise UserInputError(
            f"{flag}: '{path}' holds a {type(loaded).__name__}, expected a state dict."
        )
    return loaded


def check_file(path: Path, flag: str) -> None:
    """Make sure that a file is whole, without loading it; 0.1 s for 150 MB.

    Of the format that torch wrote before version 1.6, only loading can tell.

    Raises:
        UserInputError: it is cut short, or bytes of it have changed.
    """
    try:
        if path.suffix == SAFETENSORS:
            with safe_open(path, "pt"):  # compares the sizes in the header with the file's
                return
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as stream:
                cut = stream.read(4) == b"PK\x03\x04"  # a zip file ends with its directory
            if cut:
                raise damaged(path, flag, "its end is missing")
            return
        with zipfile.ZipFile(path) as archive:
            _check_records(archive, path, flag)
            # torch can be told to write no check sums, and then writes zeros.
            summed = any(record.CRC for record in archive.infolist())
            wrong = archive.testzip() if summed else None
    except UserInputError:
        raise
    except Exception as error:  # names that are no text, offsets before the file, passwords ...
        raise damaged(path, flag, why_unread(error)) from None
    if wrong:
        raise damaged(path, flag, f"the check sum of '{wrong}' is wrong")


def _check_records(archive: zipfile.ZipFile, path: Path, flag: str) -> None:
    """Refuse records that unpack to more than the file holds; torch itself never packs them."""
    size = path.stat().st_size
    for record in archive.infolist():
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > size:
            raise damaged(path, flag, f"'{record.filename}' is packed, or larger than the file")


def read_safetensors_entries(path: Path, flag: str) -> dict[str, Any]:
    """Entries of a safetensors file beside its tensors; those that hold JSON decoded.

    Raises:
        UserInputError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            entries: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise damaged(path, flag, why_unread(error)) from None
    return {key: _decoded(value) for key, value in entries.items()}


def _decoded(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def damaged(path: Path, flag: str, reason: str) -> UserInputError:
    """The error for a file or folder whose content cannot be right."""
    return UserInputError(
        f"{flag}: '{path}' is damaged or not a checkpoint ({reason}). Use another one."
    )


def why_unwritten(error: BaseException) -> str | None:
    """Why a file of weights could not be written; None for an error of another kind.

    torch has errors of its own for what the system refuses.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = first_line(error)
    if not any(writer in text for writer in ("inline_container.cc", "PytorchStreamWriter")):
        return None
    if isinstance(error.__context__, OSError):
        return why_unwritten(error.__context__)
    told = re.search(r"strerror: (.+)", text)
    return told[1] if told else "writing failed"


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def why_unread(error: BaseException) -> str:
    """Why a file of weights could not be read: what an error of a reader says, or plain words.

    Of bytes that are no pickle Python says things like "101" or "pop from empty list".
    """
    if isinstance(error, OSError | RuntimeError | SafetensorError | zipfile.BadZipFile):
        return first_line(error)
    return f"its bytes cannot be decoded, {type(error).__name__}"
