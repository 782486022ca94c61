"""Data of both model families: from NIfTI images to batches."""
