"""Time series of regions: atlases, extraction, subjects, batches, holdouts."""
