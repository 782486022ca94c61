"""Compile the C passes of the CPU backend; a C compiler is all it needs."""

from __future__ import annotations

from neuromamba.layers.ssd.native.build import main

__all__ = ["main"]
