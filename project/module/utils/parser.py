"""The flags of ``project/main.py``: ``neuromamba/fmamba/flags.py``."""

from neuromamba.config.flag_parser import parse_arguments
from neuromamba.fmamba.flags import build_parser

__all__ = ["build_parser", "parse_arguments"]
