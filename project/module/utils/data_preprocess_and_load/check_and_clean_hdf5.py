"""Check a store: the same as ``neuromamba check-store``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    from neuromamba.commands.check_store import main

    sys.exit(main())

from neuromamba.data.ingest.check_store import check_store

__all__ = ["check_store"]
