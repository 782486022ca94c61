"""Export any checkpoint: as a folder to share, as safetensors with metadata, or as released.

    neuromamba export output/PROJECT/RUN exports/my_model --license cc-by-nc-4.0
    neuromamba export output/PROJECT/RUN weights.safetensors
    neuromamba export output/PROJECT/RUN/checkpoints/last.ckpt weights.pt

CHECKPOINT is a run folder (its best.ckpt, else last.ckpt), a DeepSpeed folder of any stage and
number of ranks, a Lightning .ckpt, a released .pt or a safetensors file; or a model of regions that
neuromamba regions train wrote, which is exported as it is. OUTPUT ends in

    nothing        a folder: model.safetensors, config.json (the metadata), and README.md, the
                   model card of the Hugging Face hub
    .safetensors   weights with their metadata (model, data, task): --load_model_path and
                   --test_ckpt_path then need no further flags
    .pt            the layout of the released files: a flat state dict, without metadata

OUTPUT.json, written beside a file, holds the metadata and says where the weights come from. Both
hold the calibration and the test of the run, no paths, and no keys of training subjects unless
--keep_subject_keys is given. Exit status: 0; 2 for a wrong flag or file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import CONV_NAMES, EXPORT_DTYPES
from neuromamba.fmamba.export_request import ExportRequest


def export_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba export",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="what to read")
    add("output", metavar="OUTPUT", help="folder, or file that ends in .pt or .safetensors")
    add("--backbone_only", action="store_true", help="leave a downstream head out")
    add(
        "--conv_name",
        choices=CONV_NAMES,
        default=CONV_NAMES[0],
        help="of FMamba, name of the convolution; conv_xBC for mamba_ssm older than 2 (default: "
        "%(default)s)",
    )
    add(
        "--dtype",
        choices=EXPORT_DTYPES,
        default="fp32",
        help="precision of the weights; bf16 halves the file and rounds (default: %(default)s)",
    )
    add("--force", action="store_true", help="replace OUTPUT if it is there")
    add(
        "--keep_subject_keys",
        action="store_true",
        help="for use on your own data, not for sharing: keep paths, and the keys by which a later "
        "run recognises training subjects",
    )
    add(
        "--license",
        metavar="ID",
        help="licence of the model, for the model card of a folder, such as apache-2.0 (default: "
        "it says that none is stated)",
    )
    return parser


def _export_regions(path: Path, request: ExportRequest) -> None:
    """Export a NeuroSSM, or the GRU beside it."""
    from neuromamba.common.atomic_files import write_text_atomically
    from neuromamba.neurossm.export import export_model_file
    from neuromamba.neurossm.model_file import read_model_file
    from neuromamba.reports.region_model_card import region_model_card

    usual = export_parser()
    for name in ("backbone_only", "conv_name", "dtype", "keep_subject_keys"):
        if getattr(request, name) != usual.get_default(name):
            raise UserInputError(
                f"--{name}: of models of volumes; a model of regions is exported as it is. Leave "
                f"the flag out."
            )
    found = read_model_file(path)
    print("\n".join(export_model_file(found, request.path, request.metadata_path)))
    if request.folder is not None:
        name = request.folder.resolve().name
        (card,) = request.card_paths
        text = region_model_card(name, found.metadata, request.license)
        write_text_atomically(card, text)
        print(f"wrote   {card}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    values = vars(export_parser().parse_args(argv))

    def export() -> None:
        request = ExportRequest(**values)
        source = Path(request.checkpoint)
        if not source.exists():  # before torch is loaded
            find_checkpoint(source, "CHECKPOINT")
        from neuromamba.neurossm.model_file import find_model_file

        regions = find_model_file(source, "CHECKPOINT")
        if regions is not None:
            _export_regions(regions, request)
            return
        find_checkpoint(source, "CHECKPOINT")
        from neuromamba.fmamba.export_file import export_checkpoint
        from neuromamba.inference.sharing import facts_of_run

        print("\n".join(export_checkpoint(request, facts_of_run)))
        if request.folder is not None:
            from neuromamba.reports.model_card import write_model_card

            print(f"wrote   {write_model_card(request.folder, request.license)}")

    return run_command(export, "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
