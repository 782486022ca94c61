"""The reference's layouts into a store: the same as ``neuromamba convert-reference``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from neuromamba.commands.convert_reference import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
