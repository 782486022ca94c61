"""Augmentation of training windows: ``neuromamba/data/windows/augment.py``."""

from neuromamba.data.windows.augment import augment_window

__all__ = ["augment_window"]
