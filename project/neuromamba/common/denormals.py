"""Numbers below the smallest normal one of fp32 (1.2e-38) count as zero.

A Mamba head reads the last token of a window, so the gradients of tokens far before it die out and
end as such denormal numbers, with which most processors compute 10 to 100 times as slowly.
"""

from __future__ import annotations

import torch


def flush_denormals() -> None:
    """Count denormal numbers as zero, in this thread and in those that it starts from now on.

    Call it before anything is computed with several threads: those of torch, once started, keep
    what they have. The C passes of the scan do this by themselves; see ``ssd_native/block.h``.
    Processors that cannot do this compute with denormal numbers, more slowly.
    """
    torch.set_flush_denormal(True)
