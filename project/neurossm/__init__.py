"""NeuroSSM: a multi-pathway state-space classifier of ROI time series, and its explanation."""
