"""The schedule of the learning rate: ``neuromamba/training/lr_schedule.py``."""

from neuromamba.training.lr_schedule import CosineAnnealingWarmUpRestarts

__all__ = ["CosineAnnealingWarmUpRestarts"]
