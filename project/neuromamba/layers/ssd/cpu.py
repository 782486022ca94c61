"""The portable backend: blockwise and recomputing (see ``blockwise``), on any device."""

from __future__ import annotations

from torch import Tensor

from neuromamba.layers.ssd import blockwise, native
from neuromamba.layers.ssd.registry import register_backend
from neuromamba.layers.ssd.types import MixerParams


def _detail() -> str:
    library, detail = native.status()
    return f"C passes {detail}" if library is not None else f"torch passes; C passes: {detail}"


@register_backend("cpu", block=blockwise.residual_block, detail=_detail)
def mix_blockwise(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """Blockwise scan of packed sequences; see ``api.mixer_core``."""
    return blockwise.mix(zxbcdt, params, lengths)
