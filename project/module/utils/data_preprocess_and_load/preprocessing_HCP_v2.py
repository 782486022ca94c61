"""HCP's runs into a store: ``neuromamba preprocess --layout hcp --dataset_name S1200``."""

import functools
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from neuromamba.commands import preprocess

main = functools.partial(preprocess.main, layout="hcp", dataset_name="S1200")

if __name__ == "__main__":
    sys.exit(main())
