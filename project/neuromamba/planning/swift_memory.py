"""Memory of a training step of SwiFT: what its stages keep, and in what order it goes away.

What autograd keeps is read off ``fmamba.swift``. Attention is that of torch's fused kernels, which
keep no product of queries and keys; where windows are shifted or padded they keep a mask, one
number for each pair of tokens of a window, in the type of the operands. What these kernels need
inside themselves is left out. A test compares with a step on the CPU.

Shapes: L tokens of a stage, C its width, P tokens with the padding of windows, N of a window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.swift import MLP_RATIO, WindowLayout, grid_of_stage
from neuromamba.planning.layer_memory import Step
from neuromamba.planning.tape import Tape

_STREAM, _BLOCKS = "residual stream", "kept by the blocks"
_LAST = "kept by the output layer or head"


class Block(NamedTuple):
    """A block on the tokens of a batch.

    Attributes:
        rows, padded: L and P of all windows of the batch.
        width, heads: C and the heads of its attention.
        masked: N, where the attention needs a mask; else 0.
        copied: the grid is padded or rolled.
    """

    rows: int
    padded: int
    width: int
    heads: int
    masked: int
    copied: bool

    def kept(self, step: Step) -> int:
        """Bytes from the forward to the backward pass, beside the input."""
        return self.attention(step) + self.mlp(step) + self.rows * self.width * step.parameter

    def attention(self, step: Step) -> int:
        """Bytes that the attention keeps."""
        # Scale and mean of the norm; input, queries, keys and values, output, sums of the softmax,
        # mask.
        each = 5 * self.width * step.operand + 4 * self.heads + self.masked * step.operand
        return 8 * self.rows + self.padded * each

    def mlp(self, step: Step) -> int:
        """Bytes that the MLP keeps."""
        # Scale and mean of the norm; its output; before and after the activation.
        return self.rows * (8 + (1 + 2 * MLP_RATIO) * self.width * step.operand)

    def forward(self, step: Step) -> int:
        """Bytes at work in the forward pass: the norm's output in fp32 and its copies, the mask."""
        wide = max(4, step.operand) if step.operand != step.parameter else step.operand
        copies = self.padded * self.width * wide * (2 if self.copied else 1)
        return copies + self.padded * self.masked

    def backward(self, tape: Tape, step: Step) -> None:
        """Record the backward pass, from the gradient of the output to that of the input."""
        moment, o = "blocks backward", step.operand
        hidden = MLP_RATIO * self.rows * self.width * o
        stream = self.rows * self.width * step.parameter
        cast = self.rows * self.width * o if o != step.parameter else 0
        tape.work(cast + hidden, moment)
        tape.drop(_BLOCKS, hidden)  # what the second product had read
        tape.work(cast + 2 * hidden, moment)
        tape.drop(_BLOCKS, self.mlp(step) - hidden)
        tape.work(hidden + 2 * stream, moment)
        rows = self.padded * self.width * o
        tape.work(2 * stream + 4 * rows, moment)
        tape.work(2 * stream + 6 * rows, moment)
        tape.drop(_BLOCKS, self.attention(step) + stream)


def blocks_of_stage(config: ModelConfig, number: int, windows: int) -> list[Block]:
    """The blocks of a stage, counted from 0, on a batch."""
    grid = grid_of_stage(config.token_grid, number)
    last = number == len(config.swin_depths) - 1
    found = []
    for i in range(config.swin_depths[number]):
        layout = WindowLayout.of(grid, grid if last else config.swin_window, shifted=i % 2 == 1)
        plain = not any(layout.shift) and layout.padded == grid
        found.append(
            Block(
                rows=windows * math.prod(grid),
                padded=windows * math.prod(layout.padded),
                width=config.swin_widths[number],
                heads=config.swin_heads[number],
                masked=0 if plain else math.prod(layout.window),
                copied=not plain,
            )
        )
    return found


def swift_step(tape: Tape, step: Step) -> None:
    """Record everything after the embedding, whose output lies in the residual stream."""
    config, windows = step.model, len(step.lengths)
    stages = [blocks_of_stage(config, n, windows) for n in range(len(config.swin_depths))]
    p = step.parameter
    before = step.tokens * config.embed_dim * p  # what the stage begins with
    for number, blocks in enumerate(stages):
        stream = blocks[0].rows * blocks[0].width * p
        tape.take(_STREAM, stream, "blocks forward")  # with the encodings of places and times
        tape.work(stream, "blocks forward")
        tape.drop(_STREAM, before)
        for block in blocks:
            _forward(tape, step, block)
        before = stream
        if number + 1 < len(stages):
            before = _merge(tape, step, blocks[0], stages[number + 1][0])
    _head(tape, step, before)
    if step.frozen:
        return
    for number, blocks in reversed(list(enumerate(stages))):
        if number + 1 < len(stages):
            _merge_backward(tape, step, stages[number + 1][0])
        for block in reversed(blocks):
            if step.checkpointing:
                tape.take(_BLOCKS, block.kept(step), "blocks backward")
                tape.work(block.forward(step), "blocks backward")
            block.backward(tape, step)
            tape.drop(_STREAM, block.rows * block.width * p)  # its input


def _forward(tape: Tape, step: Step, block: Block) -> None:
    stream, moment = block.rows * block.width * step.parameter, "blocks forward"
    if step.frozen:  # nothing is kept, so that attention and MLP are not there together
        tape.work(block.attention(step) + block.forward(step), moment)
        tape.work(stream + block.mlp(step), moment)
        return
    kept = block.kept(step)
    tape.take(_BLOCKS, kept, moment)
    tape.work(block.forward(step), moment)
    if step.checkpointing:
        tape.drop(_BLOCKS, kept)
    tape.take(_STREAM, stream, moment)


def _merge(tape: Tape, step: Step, block: Block, next_block: Block) -> int:
    """Neighbours one after the other, their norm, the product; bytes of what it gives."""
    p, o, moment = step.parameter, step.operand, "blocks forward"
    joined = 4 * next_block.rows * next_block.width  # 8 C for each merged token
    out = next_block.rows * next_block.width * p
    tape.take(_STREAM, joined * p, moment)
    tape.take(_BLOCKS, joined * o + 8 * next_block.rows, moment)
    tape.work(joined * p if o != p else 0, moment)
    if step.frozen:
        tape.drop(_STREAM, joined * p)
        tape.drop(_BLOCKS, joined * o + 8 * next_block.rows)
        tape.drop(_STREAM, block.rows * block.width * p)
    tape.take(_STREAM, out, moment)
    return out


def _merge_backward(tape: Tape, step: Step, next_block: Block) -> None:
    p, o = step.parameter, step.operand
    joined = 4 * next_block.rows * next_block.width
    tape.work(joined * (o + p), "blocks backward")
    tape.drop(_BLOCKS, joined * o + 8 * next_block.rows)
    tape.work(2 * joined * p, "blocks backward")
    tape.drop(_STREAM, joined * p)


def _head(tape: Tape, step: Step, before: int) -> None:
    """The final norm, its rows spread over the patches, and a linear head on them."""
    model, head = step.model, step.head
    assert head is not None
    rows = step.tokens * model.feature_dim * step.parameter
    wide = step.tokens * model.feature_dim * 4
    tape.work(before, "head")
    tape.take(_LAST, rows, "head")
    tape.work(rows, "head")
    pooled = 0
    if head.pool in ("mean_sd", "regions"):  # deviations in fp32, and the place of each token
        pooled = wide + 8 * step.tokens
    tape.take(_LAST, pooled, "head")
    if pooled:
        tape.work(2 * wide, "head")  # the means of each token's place, and squares
    tape.work(rows, "head backward")
    tape.drop(_LAST, pooled + rows)
    tape.drop(_STREAM, before)
