"""Which checkpoint a path means: a file, a run folder, or one of the folders that are checkpoints.

output/PROJECT/RUN                     its checkpoints/best.ckpt, else last.ckpt
output/PROJECT/RUN/checkpoints         the same
.../best.ckpt, last.ckpt, epoch=...    a file, or under DeepSpeed a folder
a folder of safetensors                one file, or those of its model.safetensors.index.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.config.names import SAFETENSORS

FOR_USE = ("best.ckpt", "last.ckpt")
INDEX = "model.safetensors.index.json"
_LONGEST_NAME = 200  # characters
_KINDS = (".ckpt", ".pt", ".pth", ".bin", SAFETENSORS)


_WITHOUT = "there is no checkpoint in it. Give a checkpoint, or the folder of a finished run"


def find_checkpoint(
    path: str | Path, flag: str = "--load_model_path", names: Sequence[str] = FOR_USE
) -> Path:
    """The checkpoint that ``path`` means; the path itself if it is one.

    Args:
        path: what the user gave.
        flag: the flag that it was given to.
        names: which checkpoint of a run is taken, the first that is there.

    Raises:
        UserInputError: nothing there, or a folder without a checkpoint; lists what there is.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserInputError(f"{flag}: there is no file '{path}'.")
    from neuromamba.checkpoints.zero import find_shards  # imports torch

    if find_shards(path, flag):
        return path
    inside = path / "checkpoints"
    folder = inside if inside.is_dir() else path
    for name in names:
        # A run that is killed while it replaces a folder leaves the one before under this name.
        for there in (folder / name, folder / f"{name}.previous"):
            if there.exists():
                return find_checkpoint(there, flag, names)
    if folder is path and safetensors_in(path, flag):
        return path
    found = sorted(file.name for file in folder.iterdir() if file.suffix in _KINDS)
    remedy = f"name one of {', '.join(found[:8])}" if found else _WITHOUT
    raise UserInputError(f"{flag}: '{folder}' is a folder without {' and '.join(names)}; {remedy}.")


def safetensors_in(folder: Path, flag: str) -> list[Path]:
    """The files of a folder of safetensors; [] if it is something else.

    Raises:
        UserInputError: files named by the index are missing, or which file to take is not clear.
    """
    from neuromamba.checkpoints.files import damaged  # imports torch

    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(
                set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged(index, flag, "no weight_map in it") from None
        for name in names:
            if len(name) > _LONGEST_NAME:
                raise damaged(index, flag, f"it names a file '{name[:40]}...'")
            if Path(name).name != name or not (folder / name).is_file():
                raise damaged(folder, flag, f"'{name}' of its index is not there")
        return [folder / name for name in names]
    found = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(found) > 1:
        raise UserInputError(
            f"{flag}: '{folder}' holds {len(found)} files and no {INDEX}; name one of "
            f"{', '.join(file.name for file in found[:8])}."
        )
    return found
