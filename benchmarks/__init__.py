"""Timings and comparisons; a package, as NiMARE installs a folder of the same name."""
