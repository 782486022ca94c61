"""A trained model and scans: load, prepare, predict, embed."""
