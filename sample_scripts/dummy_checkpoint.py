"""Writes an untrained backbone in the layout of the released ``.pt`` files.

It stands for one of them where a script is only tried out: same keys, prefix and shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuromamba.common.errors import UserInputError
from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.fmamba.flags import build_parser

PREFIX = "_forward_module.model."


def dummy_parser() -> Parser:
    """Flags of ``project/main.py``, of which those of the model and ``--seed`` count."""
    parser = build_parser()
    parser.prog, parser.description = "dummy_checkpoint.py", __doc__
    parser.add_argument("--output", required=True, metavar="FILE", help="the .pt file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 2 with one line for a user's mistake."""
    import torch

    from neuromamba.common.atomic_files import atomic_path
    from neuromamba.common.seeds import seed_run
    from neuromamba.fmamba.build import build_model
    from neuromamba.fmamba.run_config import run_config

    try:
        args, given = parse_arguments(dummy_parser(), sys.argv[1:] if argv is None else argv)
        seed_run(args.seed)
        weights = build_model(run_config(args, given).model).state_dict()
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save({PREFIX + key: value for key, value in weights.items()}, temporary)
    except UserInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --output: cannot write '{path}' ({error.strerror}).", file=sys.stderr)
        return 2
    print(f"{path}: {len(weights)} tensors, untrained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
