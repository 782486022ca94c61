"""Convert HCP's minimally preprocessed runs; ``preprocessing.py`` with the defaults of HCP.

    python project/module/utils/data_preprocess_and_load/preprocessing_HCP_v2.py \\
        --input HCP_S1200 --output IMAGE_PATH

takes ``<subject>/MNINonLinear/Results/<run>/<run>_hp2000_clean.nii.gz`` (tasks:
``<run>.nii.gz``), the mask ``brainmask_fs.2.nii.gz`` beside it, and labels the store S1200. The
flags are those of ``preprocessing.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from project.module.utils.data_preprocess_and_load import preprocessing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return preprocessing.main(argv, layout="hcp", dataset_name="S1200")


if __name__ == "__main__":
    sys.exit(main())
