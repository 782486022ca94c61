"""Check what this machine has for a training, and say how to obtain what is missing.

    neuromamba doctor --image_path /path/to/store

"neuromamba plan" predicts what a training needs.

Exit status: 0 if a training can run here; 1 if something that it needs is missing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.json_flag import add_json, write_json
from neuromamba.config.flag_parser import Parser, parse_arguments


def doctor_parser() -> Parser:
    """Flags of the check."""
    parser = Parser(
        prog="neuromamba doctor",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--image_path", nargs="+", default=[], metavar="DIR", help="stores to look at"
    )
    add_json(parser)
    return parser


def check(argv: Sequence[str]) -> int:
    """Look at the machine; 1 if something that every training needs is missing.

    Raises:
        UserInputError: a flag is wrong.
    """
    args, _ = parse_arguments(doctor_parser(), argv)
    from neuromamba.planning.data_path import check_data_path
    from neuromamba.planning.machine import check_machine, check_text

    found = check_machine()
    for path in args.image_path:
        found += check_data_path(path)
    can_train = all(line.state != "missing" for line in found)
    record = {"can_train": can_train, "checks": [line._asdict() for line in found]}
    if args.json != "-":
        print(check_text(found, can_train))
    write_json(record, args.json)
    return 0 if can_train else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0, 1 if something is missing, 2 if a flag or a file is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("neuromamba").setLevel(logging.ERROR)
    return run_command(lambda: check(words), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
