"""Windows of runs: data set, loader, cache, sampling, augmentation, DataModule."""
