"""DeepSpeed's flops profiler on FMamba, beside the formula, every difference by name.

The profiler counts the torch functions that it replaces while a forward pass runs (``F.linear``,
``torch.einsum``, ``F.conv1d`` ...). It sees neither operators such as ``x * y`` nor what happens
inside a kernel. So it is asked twice: with the scan as a kernel, as mamba_ssm's looks to it, and
with the scan in plain torch functions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.rms_norm import rms_norm
from neuromamba.layers.ssd.types import CHUNK, MixerParams
from neuromamba.planning import flops


class _Step(nn.Module):
    """A function as a module, so that the profiler books what it counts under a name."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Tensor:
        return self.function(*arguments)


class PlainMixer(nn.Module):
    """The mixer of ``ssd.api`` on one sequence, in ordinary torch functions that profilers know.

    Written to be seen, not to be fast: convolution by ``F.conv1d``, products by ``torch.einsum``.
    Each step is a child module, named after its term in ``flops.block_terms`` ("block: " left out).
    """

    def __init__(self) -> None:
        super().__init__()
        functions: dict[str, Callable[..., Tensor]] = {
            "convolution": lambda x_CL, w, b: nn.functional.conv1d(x_CL, w, b, groups=len(b)),
            "SiLU, softplus, gate, residual": lambda x: nn.functional.silu(x),
            "scan, C B^T": lambda c, b: torch.einsum("kin,kjn->kij", c, b),
            "scan, in chunks": lambda w, x: torch.einsum("khij,khjp->khip", w, x),
            "scan, to states": lambda b, x: torch.einsum("khjn,khjp->khnp", b, x),
            "scan, from states": lambda c, s: torch.einsum("khin,khnp->khip", c, s),
        }
        self.steps = nn.ModuleDict({name: _Step(one) for name, one in functions.items()})

    def forward(self, zxbcdt_LR: Tensor, params: MixerParams) -> Tensor:
        """[L, 2I + 2N + H] -> [L, I]; letters as in ``ssd.api``, K chunks of Q tokens."""
        step = self.steps
        inner, n = params.norm_weight.numel(), params.d_state
        length, heads = zxbcdt_LR.shape[0], params.dt_bias.numel()
        z, xbc, dt = zxbcdt_LR.split([inner, inner + 2 * n, heads], dim=-1)
        before = pad(xbc.T, (params.conv_weight.shape[1] - 1, 0))[None]
        convolved = step["convolution"](before, params.conv_weight[:, None], params.conv_bias)
        silu = step["SiLU, softplus, gate, residual"]
        x, b, c = silu(convolved[0].T).split([inner, n, n], dim=-1)
        dt = softplus(dt + params.dt_bias)

        size = min(CHUNK, length)

        def chunked(values: Tensor) -> Tensor:
            filled = pad(values, (0, 0, 0, -length % size))
            return filled.unflatten(0, (-1, size))

        b_KQN, c_KQN, dt_KHQ = chunked(b), chunked(c), chunked(dt).transpose(1, 2)
        x_KHQP = chunked(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        sum_KHQ = (dt_KHQ * -torch.exp(params.A_log)[:, None]).cumsum(-1)
        above = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
        difference = sum_KHQ[..., :, None] - sum_KHQ[..., None, :]
        decay = torch.exp(difference.masked_fill(above, -torch.inf))
        scores = step["scan, C B^T"](c_KQN, b_KQN)
        weights = scores[:, None] * decay * dt_KHQ[..., None, :]
        y = step["scan, in chunks"](weights, x_KHQP)
        if x_KHQP.shape[0] > 1:
            to_end = torch.exp(sum_KHQ[..., -1:] - sum_KHQ) * dt_KHQ
            added = step["scan, to states"](b_KQN[:, None] * to_end[..., None], x_KHQP)
            states = [torch.zeros_like(added[0])]
            for chunk in range(x_KHQP.shape[0] - 1):
                kept = torch.exp(sum_KHQ[chunk, :, -1])[:, None, None] * states[-1]
                states.append(kept + added[chunk])
            reads = c_KQN[:, None] * torch.exp(sum_KHQ)[..., None]
            y = y + step["scan, from states"](reads, torch.stack(states))
        y_LHP = y.transpose(1, 2).flatten(0, 1)[:length] + params.D[:, None] * x.unflatten(
            -1, (heads, -1)
        )
        return rms_norm(y_LHP.flatten(1) * silu(z), params.norm_weight)


class Comparison(NamedTuple):
    """A term of the formula and what the profiler makes of it, forward pass of a window.

    Attributes:
        name: as in ``flops.forward_terms``, or what else the profiler counted.
        formula: FLOPs.
        as_kernel: the profiler's, with the scan as a kernel.
        in_torch: the profiler's, with the scan in plain torch functions.
        why: where they differ, the reason.
    """

    name: str
    formula: int
    as_kernel: int
    in_torch: int
    why: str


# Why the profiler's figure, with the scan in plain torch functions, differs from a term.
_OPERATORS = "operators (x * y) and functions that it does not replace"
_ROUNDED = "einsum, which it rounds to four digits"
_WHY = {
    "block: convolution": "it adds the bias, once for each output",
    "block: scan, C B^T": _ROUNDED,
    "block: scan, in chunks": _ROUNDED,
    "block: scan, to states": _ROUNDED,
    "block: scan, from states": _ROUNDED,
    "block: SiLU, softplus, gate, residual": f"SiLU alone; the others are {_OPERATORS}",
    "output layer: bias": "it takes a linear layer without its bias",
}


def compare(config: ModelConfig, tokens: int) -> list[Comparison]:
    """Every term of one window's forward pass, as counted by the formula and by the profiler.

    Runs on the meta device. What the profiler books where no term belongs comes last, as a line of
    its own, so that the columns always add up to its totals.

    Raises:
        UserInputError: DeepSpeed is not installed.
    """
    found = profile(_Window(config, tokens))
    inside = _profile_plain_mixer(config, tokens)
    # The submodule under which the profiler books a term, where that is not its own name.
    modules = {"embedding": "embedder", "output layer": "output_layer"}
    lines, booked = [], 0
    for term in flops.forward_terms(config, tokens):
        own = term.name.removeprefix("block: ")
        module = modules.get(own, own)
        seen = sum(value for name, value in found.items() if name.split(".")[-1] == module)
        more = config.depth * inside.pop(own, 0)
        booked += seen
        why = "" if term.flops == seen + more else _WHY.get(term.name, _OPERATORS)
        lines.append(Comparison(term.name, term.flops, seen, seen + more, why))
    other = sum(found.values()) - booked
    more = config.depth * sum(inside.values())
    if other or more:
        lines.append(Comparison("counted besides", 0, other, other + more, "no term of the model"))
    return lines


class _Window(nn.Module):
    """The backbone on the packed tokens of one window, on the meta device."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        super().__init__()
        self.model, self.packed = flops.untrained_window(config, tokens)
        # The profiler takes no notice of a bias; but with one, torch's meta kernel calls torch.mm,
        # and the product would be counted again.
        assert self.model.output_layer is not None
        self.model.output_layer.register_parameter("bias", None)

    def forward(self) -> None:
        self.model.forward_tokens(self.packed)


def _profile_plain_mixer(config: ModelConfig, tokens: int) -> dict[str, int]:
    """What the profiler books under each step of ``PlainMixer``, one block."""
    with torch.device("meta"):
        layer = Mamba2(
            config.embed_dim, config.d_state, config.headdim, config.d_conv, config.expand
        )
        zxbcdt = torch.empty(tokens, layer.in_proj.out_features)
    found = profile(PlainMixer(), zxbcdt, layer.mixer_params())
    return {name.removeprefix("steps."): value for name, value in found.items()}


def profile(module: nn.Module, *arguments: Any) -> dict[str, int]:
    """FLOPs that DeepSpeed's profiler books under each submodule in one forward pass.

    Raises:
        UserInputError: DeepSpeed is not installed.
    """
    with _quiet():
        try:
            from deepspeed.profiling.flops_profiler import FlopsProfiler
        except ImportError:
            raise UserInputError(
                "--profiler: deepspeed is not installed; run NEUROMAMBA_DEEPSPEED=1 bash "
                "setup_env.sh, or leave the flag out."
            ) from None
        profiler = FlopsProfiler(module)
        try:
            profiler.start_profile()
            with torch.no_grad():
                module(*arguments)
            profiler.stop_profile()
            found = {name: int(child.__flops__) for name, child in module.named_modules()}
            total = int(profiler.get_total_flops())
        finally:
            profiler.end_profile()
    assert sum(found.values()) == total, (found, total)
    return {name: value for name, value in found.items() if value}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress DeepSpeed's messages about the accelerator, its start and its end."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
