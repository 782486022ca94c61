"""Memory of a training step, tensor after tensor, as the code makes and drops them.

A step is walked through on paper: what the forward pass leaves for the backward pass, what a layer
needs while it runs, and in what order all of it goes away again. The most that is there at one time
is the prediction. Sizes are taken from the same places as the step takes them from
(``ssd.memory.Buffers`` and ``Pool``, ``ssd.triton.CHUNK``, ``losses.BLOCK_ROWS``); what autograd
keeps is read off the modules named beside each line.

Left out: tensors without a token axis that live inside one operation (a few MB), what libraries
take for themselves, and what an allocator cannot use of the memory it holds.

Shapes: L packed tokens, V values a token, D width, I inner width, N state size, H heads, W = I + 2N
channels of the convolution, R = 2I + 2N + H columns of the in-projection, T frames, n voxels.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch

from project.module.config import HeadConfig, ModelConfig
from project.module.models.ssd import memory, triton
from project.module.models.ssd.api import CHUNK
from project.module.models.ssd.stages import Layer
from project.module.utils import losses

# Groups of tensors, in the order in which they are reported.
GROUPS = (
    "tokens",
    "residual stream",
    "kept by the blocks",
    "kept by the output layer or head",
    "buffers of the scan",
    "working memory",
    "batch",
)


@dataclass(frozen=True)
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
        """L."""
        return sum(self.lengths)


class Peak(NamedTuple):
    """The most that a step has at one time.

    Attributes:
        total: bytes.
        groups: group of tensors -> bytes at that time.
        moment: when that is.
    """

    total: int
    groups: dict[str, int]
    moment: str


class Tape:
    """Counts what is there while a step is walked through."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self.peak = Peak(0, {}, "")

    def take(self, group: str, nbytes: float, moment: str) -> None:
        """Tensors of a group are made."""
        assert group in GROUPS, group
        self._now[group] += round(nbytes)
        total = sum(self._now.values())
        if total > self.peak.total:
            self.peak = Peak(total, dict(self._now), moment)

    def drop(self, group: str, nbytes: float) -> None:
        """They are gone."""
        self._now[group] -= round(nbytes)
        assert self._now[group] >= 0, (group, self._now)

    def work(self, nbytes: float, moment: str) -> None:
        """Made and gone within an operation."""
        self.take("working memory", nbytes, moment)
        self.drop("working memory", nbytes)


class LayerMemory(NamedTuple):
    """Bytes of a Mamba2 layer with its norm and its sum.

    Attributes:
        kept: from the forward to the backward pass, beside the layer's input.
        forward, backward: at work in either.
        pooled: for the backward pass, in memory that goes from step to step.
        again: what is kept is made in the backward pass only, by running forward again.
    """

    kept: float
    forward: float
    backward: float
    pooled: float = 0.0
    again: bool = False


def step_memory(step: Step) -> Peak:
    """The most memory that a training step has at one time, weights and optimiser not counted."""
    tape = Tape()
    _batch(tape, step)
    tokens, stream = step.tokens * step.model.token_dim * 4, _stream(step)
    tape.take("tokens", tokens + 8 * step.tokens, "packing")
    narrow = step.operand != 4  # the embedding's product keeps its operands: a copy of the tokens
    kept_tokens = step.tokens * step.model.token_dim * (step.operand if narrow else 0)
    seen = 0 if step.masked is None else tokens  # masked_fill copies; kept, if it is the operand
    tape.take("tokens", kept_tokens + seen, "embedding")
    tape.take("residual stream", stream, "embedding")
    tape.work(step.tokens * step.model.embed_dim * step.operand, "embedding")
    if step.frozen:
        tape.drop("tokens", kept_tokens)

    layers = [_backbone_layer(step, number) for number in range(step.model.depth)]
    held = _held_buffers(step, step.model.d_state, trained=not step.frozen)
    tape.take("buffers of the scan", held + sum(layer.pooled for layer in layers), "blocks forward")
    for layer in layers:
        tape.take("residual stream", stream, "blocks forward")
        tape.work(layer.forward, "blocks forward")
        if step.frozen:
            tape.drop("residual stream", stream)
        elif not layer.again:
            tape.take("kept by the blocks", layer.kept, "blocks forward")

    if narrow:
        tape.drop("tokens", seen)  # gone with ``FMamba.encode``
    if step.head:
        _head(tape, step)
    else:
        _output_layer(tape, step)
    if narrow and not step.frozen and step.head is None:
        tape.drop("tokens", tokens)  # the step has returned; the product has its copy
    if not step.frozen:
        for layer in reversed(layers):
            if layer.again:
                tape.take("kept by the blocks", layer.kept, "blocks backward")
                tape.work(layer.forward, "blocks backward")
            tape.take("residual stream", stream, "blocks backward")  # the gradient of the input
            tape.work(layer.backward, "blocks backward")
            tape.drop("kept by the blocks", layer.kept)
            tape.drop("residual stream", 2 * stream)  # that of the output, and the input
    return tape.peak


def _stream(step: Step) -> int:
    """[L, D] of the residual stream."""
    return step.tokens * step.model.embed_dim * step.parameter


def _batch(tape: Tape, step: Step) -> None:
    """The compact windows and where their voxels go (``datasets_hdf5``, ``tokenizer``)."""
    frames, patch = step.model.img_size[3], math.prod(step.model.patch_size[:3])
    windows = sum(2 * frames * n + 4 * n for n in step.voxels)
    if step.device != "cpu":  # on a CPU they stay in the loader's memory
        tape.take("batch", windows, "packing")
    places = step.tokens // step.model.token_grid[3] * patch
    rows = 0 if step.head else 2 * step.tokens  # targets, and the sample of each
    tape.take("batch", 8 * (places + rows), "packing")
    largest, step_frames = max(step.voxels), step.model.patch_size[3]
    if step.device != "cpu":
        step_frames = frames  # all frames at once
    if step.augmented:
        augmented = sum(4 * frames * n for n in step.voxels)
        # resample: eight corners with a weight each, twice (a copy in the other order).
        tape.take("working memory", augmented, "augmentation")
        tape.work(largest * (4 * frames * 2 + 2 * 8 * 8), "augmentation")
    scaled = 4 * step_frames * (largest + 1 + max(step.lengths) // step.model.token_grid[3] * patch)
    tape.work(scaled, "packing")
    if step.augmented:
        tape.drop("working memory", augmented)


# -------------------------------------------------------------------------------------- the blocks


def _scan_layer(step: Step, d_state: int) -> Layer:
    """The layer as the portable backend sees it."""
    operand = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[step.operand]
    model = step.model
    return Layer(model.nheads, model.headdim, d_state, model.d_conv, step.lengths, operand)


def _block_buffers(step: Step, d_state: int, backward: bool) -> int:
    """Buffers for a block of tokens: ``ssd.memory.Buffers`` itself says how large."""
    device = torch.device(step.device)
    rows = min(memory.block_rows(device), math.ceil(max(step.lengths) / CHUNK) * CHUNK)
    found = memory.Buffers(_scan_layer(step, d_state), rows, step.model.embed_dim, device)
    shapes = found._shapes(backward).values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)


def _held_buffers(step: Step, d_state: int, trained: bool) -> int:
    """What the portable backend keeps from call to call, on CPUs alone."""
    if step.backend != "cpu" or step.device != "cpu":
        return 0
    return _block_buffers(step, d_state, trained)


def _borders(step: Step, d_state: int) -> int:
    """What ``blockwise`` keeps at the start of each block of tokens."""
    rows = memory.block_rows(torch.device(step.device))
    blocks, model = sum(math.ceil(n / rows) for n in step.lengths), step.model
    wide = max(4, step.operand)
    states = blocks * model.nheads * d_state * model.headdim * wide
    return states + (blocks + 1) * (model.d_conv - 1) * (model.d_inner + 2 * d_state) * step.operand


def _torch_passes(step: Step, in_one_go: bool) -> int:
    """What ``stages`` makes where there are no C passes: of a block, [K, H, Q, Q] and [R, W]."""
    # For a whole block they want the residual stream in fp32 (``native.can_run``).
    if step.native and step.device == "cpu" and (step.parameter == 4 or not in_one_go):
        return 0
    model, rows = step.model, memory.block_rows(torch.device(step.device))
    rows = min(rows, max(step.lengths))
    # weights_backward: the differences in fp64, their exponentials, and three products in fp32.
    decays = rows * model.nheads * CHUNK * (8 + 4 * 4)
    # convolution_backward: inputs, output, sigmoid, gradient, its shifted copy and the sum.
    return max(decays, 6 * rows * (model.d_inner + 2 * model.d_state) * 4)


def _backbone_layer(step: Step, number: int) -> LayerMemory:
    """A block of the backbone: in one go (``ResidualBlock``), or layer by layer."""
    in_one_go = step.backend == "cpu" and not step.hooked and step.model.dropout == 0
    if not in_one_go:
        layer = _by_layer(step, step.model.d_state, step.model.dropout)
        return layer._replace(again=step.checkpointing)
    on_cpu = step.device == "cpu"
    own = 0 if on_cpu else _block_buffers(step, step.model.d_state, True)
    work = own + _torch_passes(step, in_one_go=True)
    projected = 4 * step.tokens * _columns(step.model, step.model.d_state)
    pooled = 0
    if on_cpu and step.operand == 4 and not step.checkpointing and not step.frozen:
        # Each layer takes its share of the pool until the budget is used up.
        pooled = projected if (number + 1) * projected <= memory.BUDGET_BYTES else 0
    return LayerMemory(_borders(step, step.model.d_state), work, work, pooled)


def _columns(model: ModelConfig, d_state: int) -> int:
    """R."""
    return 2 * model.d_inner + 2 * d_state + model.nheads


def _by_layer(step: Step, d_state: int, dropout: float) -> LayerMemory:
    """``x + dropout(out_proj(mixer(in_proj(norm(x)))))`` as autograd sees it."""
    model, length, o = step.model, step.tokens, step.operand
    d, inner, columns = model.embed_dim, model.d_inner, _columns(model, d_state)
    core = _mixer(step, d_state)
    # Scale of the norm, inputs of in_proj, of the mixer and of out_proj, mask of the dropout.
    kept = length * (4 + d * o + columns * o + inner * o + (d * o if dropout else 0)) + core.kept
    forward = max(core.forward, length * d * (o + step.parameter))
    # out_proj's gradient and the mixer's, then in_proj's and the three passes of the norm.
    in_mixer = length * o * (d + inner + columns) + core.backward
    in_norm = length * (o * (columns + d) + 3 * 4 * d)
    return LayerMemory(kept, forward, max(in_mixer, in_norm))


def _mixer(step: Step, d_state: int) -> LayerMemory:
    """What lies between the projections, in the backend."""
    if step.backend == "cpu":
        own = 0 if step.device == "cpu" else _block_buffers(step, d_state, True)
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


# ------------------------------------------------------------------------------ what comes after


def _output_layer(tape: Tape, step: Step) -> None:
    """Norm, prediction and squared error, block after block (``losses._row_errors``)."""
    model, o, p = step.model, step.operand, step.parameter
    d, v, stream = model.embed_dim, model.token_dim, _stream(step)
    name = "kept by the output layer or head"
    rows = step.tokens
    gathered = 0.0
    if step.masked is not None:
        rows = math.ceil(rows * step.masked)
        gathered = rows * (d * p + v * 4)  # the targets' rows of both
        tape.take(name, gathered, "output layer and loss")
    block = min(rows, losses.BLOCK_ROWS.get(step.device, losses.BLOCK_ROWS_ELSEWHERE))
    wide = max(4, o)
    kept = rows * (4 + d * o + v * wide)  # scale and output of the norm; differences
    tape.take(name, kept, "output layer and loss")
    tape.work(block * (v * o + (d * p if o != p else 0)), "output layer and loss")
    # Backwards: the first block's gradients while nothing is gone yet.
    tape.work(block * (v * (wide + o * (o != wide)) + d * (o + 3 * 4)), "output layer backward")
    # The pieces of the gradient of the stream grow as the differences go; then they are joined.
    tape.drop(name, kept)
    tape.take("residual stream", 2 * rows * d * p, "output layer backward")
    tape.drop("residual stream", 2 * rows * d * p)
    tape.take("residual stream", stream, "output layer backward")
    tape.drop("residual stream", stream)  # the last block's output; its gradient stays
    tape.drop(name, gathered)


def _head(tape: Tape, step: Step) -> None:
    """The final norm, then a linear or a Mamba head (``heads``)."""
    head, model, stream = step.head, step.model, _stream(step)
    assert head is not None
    name, length = "kept by the output layer or head", step.tokens
    kept: list[tuple[float, float]] = [(stream + 4 * length, 3 * 4 * length * model.embed_dim)]
    tape.take(name, kept[0][0], "head")
    tape.work(4 * length * model.embed_dim, "head")
    if head.name == "mamba":
        d_state = model.embed_dim // 16
        layer = _by_layer(step, d_state, head.dropout)
        tape.take("buffers of the scan", _held_buffers(step, d_state, True), "head")
        for _ in range(head.mamba_depth):
            # The layer's, the sum that the norm reads, and what the norm gives: the next layer's
            # input, of which in_proj keeps a copy only if its operands are of another type.
            copied = (
                0 if step.operand != step.parameter else length * model.embed_dim * step.operand
            )
            kept.append((layer.kept - copied + 2 * stream, layer.backward + stream))
            tape.take(name, kept[-1][0], "head")
            tape.work(layer.forward, "head")
    for own, work in reversed(kept):
        tape.take("residual stream", stream, "head backward")  # a gradient
        tape.work(work, "head backward")
        tape.drop("residual stream", stream)
        tape.drop(name, own)
    # The gradient of the backbone's output takes the place of that output.
