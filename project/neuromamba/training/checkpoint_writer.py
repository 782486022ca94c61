"""Checkpoints are there whole or not at all, whenever a run is killed: files and folders.

What is written gets a temporary name beside its own, goes to the disk, and is then renamed. Two
folders cannot change places in one move everywhere, so for a moment the old one is called
``*.ckpt.previous``; ``--resume_ckpt_path last`` looks there, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from neuromamba.checkpoints.files import why_unwritten
from neuromamba.common.atomic_files import remove_abandoned, temporary_beside
from neuromamba.common.errors import UserInputError

PREVIOUS = ".previous"


class UnwrittenError(UserInputError):
    """A checkpoint cannot be written.

    Args:
        message: for the user.
        temporary: what there is of it; a folder may still be written to by other ranks.
    """

    def __init__(self, message: str, temporary: Path) -> None:
        super().__init__(message)
        self.temporary = temporary


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes single-file checkpoints; Lightning's own may leave half of one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a file, or leave the one that is there.

        Raises:
            UnwrittenError: it cannot be written.
        """
        target = Path(path)
        temporary = temporary_beside(target)
        with written(temporary, target):
            with open(temporary, "xb") as stream:
                torch.save(dict(checkpoint), stream)
                stream.flush()
                os.fsync(stream.fileno())
            put_in_place(temporary, target)


@contextmanager
def written(temporary: Path, target: Path) -> Iterator[None]:
    """Make the folder of a checkpoint; no file stays under the temporary name if the block fails.

    Raises:
        UnwrittenError: it cannot be written. A temporary folder is left to who catches it.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        reason = why_unwritten(error)
        if reason is None or not temporary.is_dir():
            remove(temporary)
        if reason is None:
            raise
        raise UnwrittenError(
            f"--output_dir: the checkpoint '{target}' cannot be written ({reason}). Is the disk "
            f"full? The one before it is as it was; make room, or continue in another folder.",
            temporary,
        ) from None


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename a finished file or folder, in the place of what is there.

    At every moment ``target`` or ``target.previous`` is whole, if ``target`` was before.
    """
    previous = target.with_name(target.name + PREVIOUS)
    if target.exists() and (target.is_dir() or temporary.is_dir()):
        remove(previous)
        os.rename(target, previous)
    os.replace(temporary, target)
    _to_disk(target.parent)
    remove(previous)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def shards_to_disk(folder: Path, rank: int) -> None:
    """Have the disk hold what this rank wrote into a DeepSpeed folder, and rank 0 all the rest."""
    for file in folder.rglob("*"):
        own = f"_rank_{rank}_mp_rank" in file.name
        if file.is_file() and (own or (rank == 0 and "zero_pp_rank" not in file.name)):
            _to_disk(file)


def clean_up(folder: Path) -> None:
    """Delete what killed runs have left half written."""
    if folder.is_dir():
        remove_abandoned(folder, folders=True)


def _to_disk(path: Path) -> None:
    """``fsync``; a power failure must not leave a name without its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse it for folders; a killed process loses nothing by it
    finally:
        os.close(handle)
