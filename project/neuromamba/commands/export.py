"""Make one file of any checkpoint: the released layout, or safetensors with its metadata.

    neuromamba export output/PROJECT/RUN weights.safetensors
    neuromamba export output/PROJECT/RUN/checkpoints/last.ckpt weights.pt

CHECKPOINT is a run folder (its best.ckpt, else last.ckpt), a DeepSpeed folder of any stage and
number of ranks, a Lightning .ckpt, a released .pt or a safetensors file. OUTPUT ends in

    .safetensors   weights with their metadata: --load_model_path and --test_ckpt_path then need no
                   further flags
    .pt            the layout of the released files: a flat state dict, without metadata

OUTPUT.json, written beside it, holds the metadata and the origin of the weights. Exit status: 0; 2
for a wrong flag or file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from neuromamba.checkpoints.files import first_line, why_unwritten
from neuromamba.checkpoints.io import (
    CHECKPOINT_KEY,
    EXPORT_KEY,
    CheckpointContents,
    read_checkpoint,
)
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.common.version import code_version
from neuromamba.fmamba.export import (
    CONV_NAMES,
    DTYPES,
    HEAD_PARTS,
    check_weights,
    released_state,
    safetensors_entries,
)

_OUTPUTS = (".pt", ".safetensors")


@dataclass(frozen=True)
class ExportRequest:
    """A call of the command; the fields are its arguments.

    Raises:
        UserInputError: an output of another kind, or one that is there already.
    """

    checkpoint: str
    output: str
    backbone_only: bool = False
    conv_name: str = CONV_NAMES[0]
    dtype: str = "fp32"
    force: bool = False

    def __post_init__(self) -> None:
        if self.path.suffix not in _OUTPUTS:
            raise UserInputError(
                f"OUTPUT: got '{self.output}', expected a name that ends in "
                f"{' or '.join(_OUTPUTS)}."
            )
        for path in (self.path, self.metadata_path):
            if path.is_dir() or (path.exists() and not self.force):
                raise UserInputError(
                    f"OUTPUT: '{path}' is there already. Choose another name, or add --force to "
                    f"replace it."
                )

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.output)

    @property
    def metadata_path(self) -> Path:
        """The JSON file beside it, with the metadata."""
        return self.path.with_name(f"{self.path.name}.json")


def export_checkpoint(request: ExportRequest) -> list[str]:
    """Read, check, write, read back; returns the lines to print.

    Raises:
        UserInputError: the checkpoint is not readable or not an FMamba, or does not fit its
            metadata; the output cannot be written.
    """
    source = find_checkpoint(request.checkpoint, "CHECKPOINT")
    if request.path.exists() and request.path.samefile(source):
        raise UserInputError("OUTPUT: is the checkpoint itself; choose another name.")
    contents = read_checkpoint(source, "CHECKPOINT")
    state, metadata = contents.state_dict, dict(contents.metadata)
    if request.backbone_only:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        metadata = {name: part for name, part in metadata.items() if name not in HEAD_PARTS}
    if metadata:
        check_weights(state, metadata, str(source))
    released = released_state(state, str(source), request.conv_name, DTYPES[request.dtype])
    origin = origin_of(source, contents, request)
    make_folder(request.path.parent, "OUTPUT")
    write_weights(request.path, released, safetensors_entries(metadata, origin))
    text = json.dumps({CHECKPOINT_KEY: metadata, EXPORT_KEY: origin}, indent=1)
    with _refusing(request.metadata_path):
        write_text_atomically(request.metadata_path, text + "\n")
    parameters = sum(
        tensor.numel() for name, tensor in released.items() if "embedder.pos" not in name
    )
    size = request.path.stat().st_size / 1e6
    place = ", ".join(f"{name} {value}" for name, value in contents.progress.items())
    described = "" if request.path.suffix == ".pt" else ", with its metadata"
    return [
        f"read    {source} ({contents.origin}{', ' if place else ''}{place})",
        f"wrote   {request.path} ({size:.1f} MB): {len(released)} tensors, {parameters:,} "
        f"parameters, {request.dtype}{described}",
        f"wrote   {request.metadata_path}{'' if metadata else ' (the checkpoint has no metadata)'}",
    ]


def origin_of(source: Path, contents: CheckpointContents, request: ExportRequest) -> dict[str, Any]:
    """Where exported weights come from, in plain containers."""
    origin: dict[str, Any] = {
        "source": str(source.resolve()),
        "kind": contents.origin,
        **contents.progress,
        "dtype": request.dtype,
        "backbone_only": request.backbone_only,
        "code_version": code_version(),
    }
    metrics = run_metrics(source)
    if metrics is not None:
        origin["metrics"] = metrics
    if contents.export:
        origin["source_export"] = dict(contents.export)
    return origin


def run_metrics(source: Path) -> Mapping[str, Any] | None:
    """``metrics.json`` of the run, where it tells of this checkpoint and not of a better one."""
    run = source.resolve().parent.parent
    path = run / "metrics.json"
    if source.resolve().parent.name != "checkpoints" or not path.is_file():
        return None
    if find_checkpoint(run, "CHECKPOINT") != source.resolve():
        return None
    metrics: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def write_weights(path: Path, state: dict[str, Tensor], entries: dict[str, str]) -> None:
    """Write a file whole or not at all, and compare it with what it should hold.

    Raises:
        UserInputError: it cannot be written, or not read back as it was written.
    """
    with _refusing(path), atomic_path(path) as temporary:
        if path.suffix == ".pt":
            torch.save(state, temporary)
            again = torch.load(temporary, map_location="cpu", weights_only=True)
        else:
            # Not by its ``save_file``, whose files are readable for their owner only.
            temporary.write_bytes(save(state, entries))
            again = load_file(temporary)
        if set(again) != set(state) or any(
            again[name].dtype != tensor.dtype or not torch.equal(again[name], tensor)
            for name, tensor in state.items()
        ):
            raise OSError("what was read back differs")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Make a message of what the system has against writing a file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = why_unwritten(error) or first_line(error)
        raise UserInputError(
            f"OUTPUT: '{path}' cannot be written ({reason}). Make room if the disk is full, or "
            f"choose a folder that can be written."
        ) from None


def export_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="what to read")
    add("output", metavar="OUTPUT", help="file to write, .pt or .safetensors")
    add("--backbone_only", action="store_true", help="leave a downstream head out")
    add(
        "--conv_name",
        choices=CONV_NAMES,
        default=CONV_NAMES[0],
        help="name of the convolution; conv_xBC for mamba_ssm older than 2 (default: %(default)s)",
    )
    add(
        "--dtype",
        choices=tuple(DTYPES),
        default="fp32",
        help="precision of the weights; bf16 halves the file and rounds (default: %(default)s)",
    )
    add("--force", action="store_true", help="replace OUTPUT if it is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    values = vars(export_parser().parse_args(argv))
    return run_command(
        lambda: print("\n".join(export_checkpoint(ExportRequest(**values)))),
        "nothing was written.",
    )


if __name__ == "__main__":
    sys.exit(main())
