"""The DataModule and the cohorts: ``neuromamba/data``."""

from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.windows.data_module import FMRIDataModule

__all__ = ["DATASETS", "FMRIDataModule"]
