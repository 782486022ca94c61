"""``convert_data_into_hdf5_revised.py`` with its filter off: contiguous, uncompressed data sets."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from project.module.utils.data_preprocess_and_load.convert_data_into_hdf5_revised import main

if __name__ == "__main__":
    sys.exit(main(compression="none"))
