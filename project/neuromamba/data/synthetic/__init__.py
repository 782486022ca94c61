"""Synthetic runs and time series with planted effects."""
