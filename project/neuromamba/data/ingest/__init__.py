"""Conversion of NIfTI images into a store: layouts, space, grid, quarantine."""
