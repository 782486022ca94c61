"""Memory of a training step, tensor after tensor, as the code makes and drops them.

A step is walked through on paper: what the forward pass leaves for the backward pass, what a block
needs while it runs (``layer_memory``), and in what order all of it goes away again. The most that
is there at one time is the prediction.

Left out: tensors without a token axis that live inside one operation (a few MB), what libraries
take for themselves, and what an allocator cannot use of the memory it holds.

Shapes: L packed tokens, V values a token, D width, T frames, n voxels.
"""

from __future__ import annotations

import math

from neuromamba.fmamba import losses
from neuromamba.planning.layer_memory import (
    LayerMemory,
    Step,
    backbone_layer,
    held_buffers,
    layer_by_layer,
)
from neuromamba.planning.swift_memory import swift_step
from neuromamba.planning.tape import GROUPS, Peak, Tape

__all__ = ["GROUPS", "Peak", "Step", "step_memory"]


def step_memory(step: Step) -> Peak:
    """Predict the peak memory of a training step, without weights and optimiser."""
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
    if step.model.anatomy:  # its operands; its embedding for every token, and the sum
        places = step.tokens // step.model.token_grid[3] * step.model.place_dim
        tape.take(
            "tokens",
            places * (4 + (step.operand if narrow and not step.frozen else 0)),
            "embedding",
        )
        tape.work(2 * stream, "embedding")

    if step.model.model == "swift":
        swift_step(tape, step)
        return tape.peak
    layers = [backbone_layer(step, number) for number in range(step.model.depth)]
    held = held_buffers(step, step.model.d_state, not step.frozen, step.in_one_go)
    tape.take("buffers of the scan", held + sum(layer.pooled for layer in layers), "blocks forward")
    for layer in layers:
        tape.take("residual stream", stream, "blocks forward")
        tape.work(layer.forward, "blocks forward")
        if step.frozen:
            tape.drop("residual stream", stream)
        elif not layer.recomputed:
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
            _layer_backward(tape, step, layer)
    return tape.peak


def _layer_backward(tape: Tape, step: Step, layer: LayerMemory) -> None:
    """Record a block's backward pass: its output's gradient to its input's."""
    stream, moment = _stream(step), "blocks backward"
    if layer.recomputed:
        tape.take("kept by the blocks", layer.kept, moment)
        tape.work(layer.forward, moment)
    if layer.at_once:
        tape.take("residual stream", stream, moment)  # the gradient of the input
    tape.work(layer.backward, moment)
    tape.drop("kept by the blocks", layer.kept)
    if not layer.at_once:
        tape.take("residual stream", stream, moment)
        tape.work(_norm_work(step), moment)
    tape.drop("residual stream", 2 * stream)  # the gradient of the output, and the input


def _norm_work(step: Step) -> int:
    """What the gradient of an RMSNorm makes beside its result (``models.utils``)."""
    return 2 * 4 * step.tokens * step.model.embed_dim


def _stream(step: Step) -> int:
    """[L, D] of the residual stream."""
    return step.tokens * step.model.embed_dim * step.parameter


def _batch(tape: Tape, step: Step) -> None:
    """The compact windows and where their voxels go (``datasets_hdf5``, ``tokenizer``)."""
    frames, patch = step.model.img_size[3], math.prod(step.model.patch_size[:3])
    windows = sum(2 * (frames + step.model.anatomy) * n + 4 * n for n in step.voxels)
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
    tape.take(name, stream + 4 * length, "head")  # the final norm's output and scale
    tape.work(4 * length * model.embed_dim, "head")
    if head.pool in ("mean_sd", "regions"):  # deviations in fp32, and the place of each token
        tape.take(name, length * (4 * model.embed_dim + 8), "head")
    blocks = head.mamba_depth if head.name == "mamba" else 0
    layer = layer_by_layer(step, model.embed_dim // 16, head.dropout)
    # in_proj keeps a copy of its input only if its operands are of another type.
    own = layer.kept
    if step.operand == step.parameter:
        own -= length * model.embed_dim * step.operand
    if blocks:
        held = held_buffers(step, model.embed_dim // 16, True, projections=False)
        tape.take("buffers of the scan", held, "head")
    for _ in range(blocks):
        tape.take(name, own + 2 * stream, "head")  # the sum that the norm reads; what it gives
        tape.work(layer.forward, "head")
    tape.take("residual stream", stream, "head backward")  # the gradient of the features
    for _ in range(blocks):
        tape.work(_norm_work(step), "head backward")
        tape.drop(name, 2 * stream)
        tape.work(layer.backward, "head backward")
        tape.drop(name, own)
    tape.work(_norm_work(step), "head backward")
    tape.drop(name, stream + 4 * length)
    if head.pool in ("mean_sd", "regions"):
        tape.drop(name, length * (4 * model.embed_dim + 8))
    # The gradient of the backbone's output takes the place of that output.
    tape.drop("residual stream", stream)
