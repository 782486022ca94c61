"""Runs one function of a benchmark in a process of its own; ``_measure.in_child`` starts it.

Reads {"function": "benchmarks.mixer:times", "allocator": ..., "threads": ..., "arguments": {...}}
from stdin and writes the function's result as the last line of stdout.
"""

from __future__ import annotations

import importlib
import json
import sys

from neuromamba.training.allocator import choose_allocator


def main() -> None:
    """Entry point."""
    job = json.load(sys.stdin)
    choose_allocator(job["allocator"], "cpu").apply()  # before torch is imported and allocates
    import torch

    torch.set_num_threads(job["threads"])
    module, function = job["function"].split(":")
    result = getattr(importlib.import_module(module), function)(**job["arguments"])
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
