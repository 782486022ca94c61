"""What is particular to each data set: ``neuromamba/data/regions/registry.py``."""

from neuromamba.data.regions.registry import DATASETS, DatasetDetails, details_of

__all__ = ["DATASETS", "DatasetDetails", "details_of"]
