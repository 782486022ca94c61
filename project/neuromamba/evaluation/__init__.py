"""Metrics, intervals, calibration, confounds, linear models, files of results."""
