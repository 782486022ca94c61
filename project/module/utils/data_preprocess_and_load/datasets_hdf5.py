"""Windows of runs: ``neuromamba/data/windows/dataset.py``."""

from neuromamba.data.windows.dataset import WindowDataset, collate_windows, windows_of

__all__ = ["WindowDataset", "collate_windows", "windows_of"]
