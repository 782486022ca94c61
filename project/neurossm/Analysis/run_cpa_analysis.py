"""CPA maps beside Neurosynth's: the same as ``neuromamba regions explain-reference``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from neuromamba.commands.regions_explain_reference import main

    sys.exit(main())
