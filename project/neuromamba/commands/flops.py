"""Count parameters, tokens and FLOPs of a model, with all tokens and with those of the brain only.

    neuromamba flops --embed_dim 256 --depth 12 --dataset_name HCP --downstream_task sex

It takes the flags of "neuromamba train"; flags that do not change the count have no effect. Without
a store it uses the MNI152 brain mask and, for HCP, an assumed number of windows, and says so.
--model swift is counted too; it reads all tokens, so nothing is saved by dropping background.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import run_config


def flops_parser() -> Parser:
    """Build the parser: the flags of ``neuromamba train``, and four of its own."""
    return build_parser("neuromamba flops", __doc__, _add_own)


def _add_own(parser: Parser) -> None:
    group = parser.add_argument_group("FLOPs")
    group.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    group.add_argument("--output", metavar="FILE", help="write the table as text")
    group.add_argument(
        "--windows_per_epoch",
        type=int,
        metavar="N",
        help="windows of an epoch (default: counted in the store)",
    )
    group.add_argument(
        "--profiler",
        metavar="NAME",
        default="torch",
        help="torch: its FlopCounterMode beside the formula; deepspeed: DeepSpeed's flops profiler "
        "as well, with every difference explained (has to be installed)",
    )


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Parse, count, print and write; returns what ``--json`` holds.

    Raises:
        UserInputError: wrong flags, data that do not fit them, a file that cannot be written.
    """
    args, given = parse_arguments(flops_parser(), argv)
    config = run_config(args, given)
    if config.model.model != "fmamba" and config.flags["profiler"] != "torch":
        raise UserInputError(
            f"--profiler: {config.flags['profiler']} is compared with the formula of --model "
            f"fmamba only, got --model {config.model.model}; use torch."
        )
    # Imported here: torch takes seconds, and a wrong flag need not wait for it.
    from neuromamba.planning.flop_report import count, table

    result = count(config)
    text = table(config, result)
    print(text)
    for flag, content in (("json", json.dumps(result, indent=2)), ("output", text)):
        path = config.flags[flag]
        if path is None:
            continue
        try:
            Path(path).write_text(content + "\n", encoding="utf-8")
        except OSError as error:
            raise UserInputError(f"--{flag}: cannot write '{path}' ({error.strerror}).") from None
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0, or 2 if a flag or a file is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)

    def command() -> None:
        run(words)

    return run_command(command, "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
