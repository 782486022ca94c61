"""NIfTI runs into a store: the same as ``neuromamba preprocess``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    from neuromamba.commands.preprocess import main

    sys.exit(main())

from neuromamba.data.ingest.folder import convert_folder

__all__ = ["convert_folder"]
