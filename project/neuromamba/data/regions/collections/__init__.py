"""Public collections of region series: found, labelled, checked, and written as one file."""
