"""Numbers below the smallest normal one of fp32 (1.2e-38) count as zero.

A Mamba head reads the last token of a window, so the gradients of tokens far before it die out and
end as such denormal numbers, with which most processors compute 10 to 100 times as slowly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_as_zeros() -> Iterator[None]:
    """Count denormal numbers as zero, in this thread and in those that it starts meanwhile.

    Threads of torch that have started before keep what they have, so enter it early. The C passes
    of the scan do this by themselves; see ``ssd_native/kernels.c``. Processors that cannot do it
    compute with denormal numbers, more slowly. Also a decorator.
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    before = not bool(smallest * 0.5 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
