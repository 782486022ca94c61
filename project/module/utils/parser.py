"""The flags of ``project/main.py``: ``neuromamba/fmamba/flags.py``."""

from neuromamba.fmamba.flags import build_parser, parse_arguments

__all__ = ["build_parser", "parse_arguments"]
