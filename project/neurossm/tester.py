"""Train, test and explain NeuroSSM: the same as ``neuromamba regions train``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from neuromamba.commands.regions_train import main

    sys.exit(main())
