"""Training of either family: strategies, launchers, fault tolerance, checkpoints."""
