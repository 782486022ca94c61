"""What a plan assumes where the flags do not say; read by the command line, so nothing is slow."""

from __future__ import annotations

CPU = "CPU"  # name of "no GPU" for --gpu
USUAL_FRAMES = 1200  # of a run of --subjects, as in HCP
# Of the matrix units' rate. Not measured: nothing of this project has run on a GPU yet. Layers this
# narrow are bound by memory traffic (docs/performance.md has the shares on a CPU).
ASSUMED_UTILISATION = 0.1
