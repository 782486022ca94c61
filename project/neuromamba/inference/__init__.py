"""Use of trained models on scans: loading, predictions, explanations, maps in the scan's space."""
