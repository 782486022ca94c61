"""The cohorts: ``neuromamba/data/cohorts/registry.py``."""

from neuromamba.data.cohorts.registry import DATASETS, Cohort, Target

__all__ = ["DATASETS", "Cohort", "Target"]
