"""What a run will need, and what a machine has: ``neuromamba doctor``."""
