"""Memory of a block of a model: what it keeps for its backward pass, and needs while it runs.

What autograd keeps is read off the modules named beside each line; sizes are taken from the places
that the blocks take them from (``ssd.memory.Buffers`` and ``Pool``, ``ssd.triton.CHUNK``).

Shapes: L packed tokens, V values a token, D width, I inner width, N state size, H heads, W = I + 2N
channels of the convolution, R = 2I + 2N + H columns of the in-projection, T frames, n voxels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.layers.ssd import buffers as memory
from neuromamba.layers.ssd import fused, native, triton
from neuromamba.layers.ssd.blocks import capacity, walk
from neuromamba.layers.ssd.native import LayerKernels
from neuromamba.layers.ssd.passes import Layer
from neuromamba.layers.ssd.types import CHUNK


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step computes, and how.

    Attributes:
        model: architecture.
        lengths: kept tokens of each window.
        voxels: brain voxels of each window.
        backend: of the scan: "cpu" or "triton".
        device: kind of device the step runs on.
        parameter: bytes of a parameter, and so of the residual stream.
        operand: bytes of what enters matrix products.
        checkpointing: ``--activation_checkpointing``.
        hooked: modules have hooks (ZeRO-3), so that blocks run layer by layer.
        native: the passes of the backend "cpu" run in C.
        fused: the backend "triton" has causal_conv1d.
        masked: share of the tokens to predict; None if each is predicted from the one before it.
        head: of a downstream task; None when pre-training.
        frozen: the backbone is not trained.
        augmented: windows are augmented on the device.
    """

    model: ModelConfig
    lengths: tuple[int, ...]
    voxels: tuple[int, ...]
    backend: str = "cpu"
    device: str = "cpu"
    parameter: int = 4
    operand: int = 4
    checkpointing: bool = False
    hooked: bool = False
    native: bool = True
    fused: bool = True
    masked: float | None = None
    head: HeadConfig | None = None
    frozen: bool = False
    augmented: bool = False

    @property
    def tokens(self) -> int:
        """L, tokens of the batch."""
        return sum(self.lengths)

    @property
    def in_one_go(self) -> bool:
        """Whether a block of the backbone is one operation (``ResidualBlock``)."""
        dropped_twice = self.model.dropout > 0 and self.checkpointing
        return self.backend == "cpu" and not self.hooked and not dropped_twice

    @property
    def one_call(self) -> LayerKernels | None:
        """The C functions that do that operation in one call (``ssd.fused``), if there are."""
        here = self.in_one_go and self.native and self.device == "cpu" and self.parameter == 4
        if not here or native.status().library is None:
            return None
        return fused.kernels_for(_scan_layer(self, self.model.d_state), self.model.embed_dim)


class LayerMemory(NamedTuple):
    """Bytes of a Mamba2 layer with its norm and its sum.

    Attributes:
        kept: from the forward to the backward pass, beside the layer's input.
        forward, backward: at work in either.
        pooled: for the backward pass, in memory that goes from step to step.
        recomputed: what is kept is made in the backward pass only, by running forward again.
        at_once: the whole block is one operation, which makes the gradient of its input first.
    """

    kept: float
    forward: float
    backward: float
    pooled: float = 0.0
    recomputed: bool = False
    at_once: bool = False


def _scan_layer(step: Step, d_state: int) -> Layer:
    """The layer as the portable backend sees it."""
    operand = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[step.operand]
    model = step.model
    return Layer(model.nheads, model.headdim, d_state, model.d_conv, step.lengths, operand)


def _block_buffers(step: Step, d_state: int, backward: bool, projections: bool) -> int:
    """Buffers for a block of tokens: ``ssd.memory.Buffers`` itself says how large."""
    device, in_one_call = torch.device(step.device), projections and step.one_call is not None
    rows = capacity(step.lengths, _block_rows(step, in_one_call))
    width = step.model.embed_dim if projections else None
    found = memory.Buffers(_scan_layer(step, d_state), rows, width, device, in_one_call)
    shapes = found._shapes(backward).values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)


def _block_rows(step: Step, in_one_call: bool) -> int:
    """Most tokens of a block."""
    return memory.piece_rows() if in_one_call else memory.block_rows(torch.device(step.device))


def held_buffers(step: Step, d_state: int, trained: bool, projections: bool) -> int:
    """What the portable backend keeps from call to call, on CPUs alone."""
    if step.backend != "cpu" or step.device != "cpu":
        return 0
    return _block_buffers(step, d_state, trained, projections)


def _borders(step: Step, d_state: int, in_one_call: bool = False) -> int:
    """What ``blockwise`` and ``fused`` keep at the start of each block of tokens."""
    walks = walk(step.lengths, _block_rows(step, in_one_call))
    blocks, model = sum(map(len, walks)), step.model
    wide = max(4, step.operand)
    states = blocks * model.nheads * d_state * model.headdim * wide
    return states + (blocks + 1) * (model.d_conv - 1) * (model.d_inner + 2 * d_state) * step.operand


def _torch_passes(step: Step, in_one_go: bool) -> int:
    """Bytes that ``passes`` allocates where there are no C passes: [K, H, Q, Q] and [R, W]."""
    # For a whole block they want the residual stream in fp32 (``native.can_run``).
    if step.native and step.device == "cpu" and (step.parameter == 4 or not in_one_go):
        return 0
    model, rows = step.model, memory.block_rows(torch.device(step.device))
    rows = min(sum(step.lengths), capacity(step.lengths, rows))
    # weights_backward: the differences in fp64, their exponentials, and three products in fp32.
    decays = rows * model.nheads * CHUNK * (8 + 4 * 4)
    # convolution_backward: inputs, output, sigmoid, gradient, its shifted copy and the sum.
    return max(decays, 6 * rows * (model.d_inner + 2 * model.d_state) * 4)


def backbone_layer(step: Step, number: int) -> LayerMemory:
    """A block of the backbone: in one go (``ResidualBlock``), or layer by layer."""
    if not step.in_one_go:
        layer = layer_by_layer(step, step.model.d_state, step.model.dropout)
        return layer._replace(recomputed=step.checkpointing)
    on_cpu = step.device == "cpu"
    own = 0 if on_cpu else _block_buffers(step, step.model.d_state, True, projections=True)
    work = own + _torch_passes(step, in_one_go=True)
    columns = _columns(step.model, step.model.d_state)
    projected = 4 * step.tokens * (step.one_call.row_of(columns) if step.one_call else columns)
    pooled = 0
    if on_cpu and step.operand == 4 and not step.checkpointing and not step.frozen:
        # Each layer takes its share of the pool until the budget is used up.
        pooled = projected if (number + 1) * projected <= memory.BUDGET_BYTES else 0
    kept = _borders(step, step.model.d_state, step.one_call is not None)
    if step.model.dropout > 0:
        kept += step.tokens * step.model.embed_dim * step.parameter  # its mask
    return LayerMemory(kept, work, work, pooled, at_once=True)


def _columns(model: ModelConfig, d_state: int) -> int:
    """R, columns of the in-projection."""
    return 2 * model.d_inner + 2 * d_state + model.nheads


def layer_by_layer(step: Step, d_state: int, dropout: float) -> LayerMemory:
    """``x + dropout(out_proj(mixer(in_proj(norm(x)))))`` as autograd sees it."""
    model, length, o = step.model, step.tokens, step.operand
    d, inner, columns = model.embed_dim, model.d_inner, _columns(model, d_state)
    core = _mixer(step, d_state)
    # Scale of the norm, inputs of in_proj, of the mixer and of out_proj, mask of the dropout.
    kept = length * (4 + d * o + columns * o + inner * o + (d * o if dropout else 0)) + core.kept
    forward = max(core.forward, length * d * (o + step.parameter))
    # Backwards: of out_proj, whose gradient autocast makes narrow; then of the mixer, when the
    # gradient of its output has taken the place of that output.
    cast = d * o if o != step.parameter else 0
    return LayerMemory(
        kept, forward, max(length * (inner * o + cast), length * columns * o + core.backward)
    )


def _mixer(step: Step, d_state: int) -> LayerMemory:
    """What lies between the projections, in the backend."""
    if step.backend == "cpu":
        own = 0
        if step.device != "cpu":
            own = _block_buffers(step, d_state, True, projections=False)
        work = own + _torch_passes(step, in_one_go=False)
        return LayerMemory(_borders(step, d_state), work, work)
    return _triton_mixer(step, d_state)


def _triton_mixer(step: Step, d_state: int) -> LayerMemory:
    """mamba_ssm 2.3 (``ops/triton/ssd_combined.py``), which computes most of it again backwards.

    Chunks of ``ssd.triton.CHUNK`` tokens; fp32 are the states between chunks [K, H, P, N], the
    products C B^T [K, Q, Q] and the steps and their sums [H, L].
    """
    model, length, o, q = step.model, step.tokens, step.operand, triton.CHUNK
    heads, inner = model.nheads, model.d_inner
    channels = inner + 2 * d_state
    # The first dimension of causal_conv1d's input has to be a multiple of 8: it gets a copy.
    copied = channels * o if _columns(model, d_state) % 8 and step.fused else 0
    states, steps = 4 * inner * d_state / q, 2 * 4 * heads
    if step.fused:
        # MambaSplitConv1dScanCombinedFn keeps the scan's output and the norm's scale.
        kept = inner * o + 4
        forward = channels * o + copied + states * 2 + q * 4 + steps
    else:
        # The convolution's output; the scan's, the steps, their sums; softplus: its input.
        kept = channels * o + inner * o + 4 * 4 * heads + 4
        forward = max(3 * 4 * channels, states * 2 + q * 4 + steps)
    products = 2 * q * 4 + (q * o if o < 4 else 0)  # C B^T, its gradient, and that once more
    sums = 4 * heads * (q // 32 + 6)  # gradients of the steps and of their sums
    shared = 2 * channels * 4 + states * 2 + 2 * inner * d_state * o / q + products + sums
    backward = shared + inner * o + channels * o
    if step.fused:
        backward += channels * o + 2 * copied
    else:
        # dx, dB and dC have been joined when the convolution's seven passes in fp32 begin.
        backward = max(backward, 7 * 4 * channels)
    sequence = 4 if len(step.lengths) > 1 else 0
    return LayerMemory(kept * length, (forward + sequence) * length, (backward + sequence) * length)
