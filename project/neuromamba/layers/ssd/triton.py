"""mamba_ssm's Triton kernels behind the common function: the backend of CUDA GPUs.

Nothing of mamba_ssm, causal_conv1d or Triton is imported before the first call. Two ways to run:

- fused: ``mamba_split_conv1d_scan_combined``, convolution, scan, gate and norm in one autograd
  function that keeps little for its backward pass; needs causal_conv1d, compiled for the GPU;
- split: a convolution in torch, then ``mamba_chunk_scan_combined`` and the gated RMSNorm kernel.

The first call for a shape runs it once beforehand, forward and backward. There Triton compiles and
tunes, and a GPU whose shared memory is too small for the kernels shows it, while the portable
backend can still take over. Whether the results are right is found out before that, by
``kernel_check``.

Facts about mamba_ssm 2.3.2 and causal_conv1d 1.7 that the code below relies on:

- sequences are distinguished by ``seq_idx``, int32 [1, L]; several may share a chunk;
- chunk sizes must be powers of two (others gave NaN);
- causal_conv1d wants channels and row stride in multiples of 8. With two heads the in-projection is
  2 mod 8 wide; mamba_ssm >= 2.3 (``ensure_stride``) copies xBC then, and pads nothing;
- offsets are int32: from 2^31 elements a tensor on, they overflow without a word;
- the kernels' own softplus, log(exp(x) + 1), keeps 1e-7 absolute, not relative: 1e-4 of a step of
  0.001. The split way computes the steps in torch instead.

Shapes: L packed tokens, C = I + 2N channels, K taps; the rest as in ``api``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neuromamba.layers.rms_norm import NORM_EPS
from neuromamba.layers.ssd import kernel_check
from neuromamba.layers.ssd.packed_convolution import CausalConvSiLU, packed_layout
from neuromamba.layers.ssd.registry import BACKENDS, register_backend
from neuromamba.layers.ssd.types import MixerFunction, MixerParams

logger = logging.getLogger(__name__)

CHUNK = 256  # mamba_ssm's default; a power of two
MOST_ELEMENTS = 2**31 - 1  # of a tensor: the kernels' offsets are int32
_INSTALL = "`bash setup_env.sh` on the machine with the GPU"


class Kernels(NamedTuple):
    """What is used of mamba_ssm.

    Attributes:
        fused: ``mamba_split_conv1d_scan_combined``, or None without causal_conv1d.
        scan: ``mamba_chunk_scan_combined``.
        gated_norm: ``rmsnorm_fn``.
        why_split: why ``fused`` is None.
        strides: whether mamba_ssm itself copies rows that causal_conv1d finds misaligned.
    """

    fused: Callable[..., Tensor] | None
    scan: Callable[..., Tensor]
    gated_norm: Callable[..., Tensor]
    why_split: str | None
    strides: bool


# ------------------------------------------------------------------------------------ importing


def _interpreted() -> bool:
    """Whether Triton interprets its kernels in numpy, which needs no GPU (tests do so)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _set_environment() -> None:
    """Hand torch's settings on to Triton and mamba_ssm, which read theirs while being imported."""
    if torch.are_deterministic_algorithms_enabled():
        # Sums in a fixed order instead of atomic additions; the tuned configurations on disk, so
        # that another run takes the same.
        os.environ.setdefault("MAMBA_DETERMINISTIC", "1")
        os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    if torch.get_float32_matmul_precision() == "highest":
        # Triton would take TF32 for float32 products (3 digits); torch has not been allowed to.
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")


def _import_mamba_ssm() -> None:
    """Make submodules of mamba_ssm importable even where ``import mamba_ssm`` fails.

    Its ``__init__`` imports Mamba-1 and with it a CUDA extension that the SSD kernels do not need
    and that setup_env.sh leaves out. In its place then stands an empty package on the same path.
    """
    if "mamba_ssm" in sys.modules:
        return
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'mamba_ssm'", name="mamba_ssm")
    try:
        importlib.import_module("mamba_ssm")
    except Exception as error:  # whatever its many imports raise, the kernels may still work
        logger.debug("import mamba_ssm: %s: %s", type(error).__name__, error)
        package = types.ModuleType("mamba_ssm", "mamba_ssm without its __init__")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = importlib.util.spec_from_loader("mamba_ssm", None, is_package=True)
        sys.modules["mamba_ssm"] = package


@functools.lru_cache(maxsize=1)
def _kernels() -> Kernels | str:
    """The kernels, or what is missing and how to get it."""
    _set_environment()
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return (
            f"Triton cannot be imported ({error}). It comes with torch's CUDA builds for Linux: "
            f"install such a torch ({_INSTALL})."
        )
    try:
        _import_mamba_ssm()
        combined = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        gated = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
    except ModuleNotFoundError as error:
        if error.name != "mamba_ssm":
            return f"mamba_ssm cannot be imported ({error}); install it again: {_INSTALL}."
        return (
            f"mamba-ssm is not installed. Install it: {_INSTALL}, or `MAMBA_SKIP_CUDA_BUILD=TRUE "
            "pip install --no-deps --no-build-isolation mamba-ssm`."
        )
    except Exception as error:  # of another version than Triton or torch, say
        return (
            f"mamba_ssm cannot be imported ({type(error).__name__}: {error}); install a version "
            f"that fits torch {torch.__version__}: {_INSTALL}."
        )
    fused, why_split = combined.mamba_split_conv1d_scan_combined, None
    if combined.causal_conv1d_fn is None:
        fused, why_split = None, "causal_conv1d cannot be imported"
    return Kernels(
        fused,
        combined.mamba_chunk_scan_combined,
        gated.rmsnorm_fn,
        why_split,
        strides=hasattr(combined, "ensure_stride"),
    )


def _require_kernels() -> Kernels:
    kernels = _kernels()
    assert isinstance(kernels, Kernels), kernels  # why_not has been asked
    return kernels


@functools.lru_cache(maxsize=16)
def why_not(device: torch.device) -> str | None:
    """None if the kernels run on ``device``, else the reason and the remedy."""
    if device.type != "cuda" and not _interpreted():
        return f"it needs a CUDA GPU, and this is {device.type}; use --ssd_backend cpu or auto."
    if device.type == "cuda" and torch.version.cuda is not None:
        if not torch.cuda.is_available():
            return "torch sees no CUDA GPU; use --ssd_backend cpu or auto."
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < (8, 0):
            return (
                f"Triton's kernels need compute capability 8.0 (Ampere or newer), and "
                f"{torch.cuda.get_device_name(device)} has {major}.{minor}; use --ssd_backend cpu."
            )
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else None


def _detail() -> str:
    """Which of the two ways the log should name."""
    kernels = _require_kernels()
    if kernels.fused is None:
        return f"convolution in torch, {kernels.why_split}"
    return "fused with causal_conv1d"


# ------------------------------------------------------------------------------------ the mixer


def _mix_fused(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """Everything in one autograd function of mamba_ssm, with causal_conv1d's convolution."""
    fused = _require_kernels().fused
    assert fused is not None
    out = fused(
        zxbcdt[None],
        params.conv_weight,
        params.conv_bias,
        params.dt_bias.float(),
        -torch.exp(params.A_log.float()),
        params.D.float(),
        CHUNK,
        seq_idx=packed_layout(lengths, params.conv_weight.shape[1], zxbcdt.device).seq_idx,
        rmsnorm_weight=params.norm_weight,
        rmsnorm_eps=NORM_EPS,
        headdim=params.headdim,
        norm_before_gate=False,
    )
    return out[0]


def _mix_split(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """Convolution and steps in torch, scan and gated norm in mamba_ssm's kernels."""
    kernels = _require_kernels()
    inner, n, heads = params.norm_weight.numel(), params.d_state, params.dt_bias.numel()
    layout = packed_layout(lengths, params.conv_weight.shape[1], zxbcdt.device)
    z, xbc, dt = zxbcdt.split([inner, inner + 2 * n, heads], dim=-1)
    xbc = CausalConvSiLU.apply(xbc, params.conv_weight, params.conv_bias, layout)
    x, b, c = xbc[None].split([inner, n, n], dim=-1)
    y = kernels.scan(
        x.unflatten(-1, (heads, params.headdim)),
        F.softplus(dt.float() + params.dt_bias.float())[None],
        -torch.exp(params.A_log.float()),
        b[:, :, None],
        c[:, :, None],
        CHUNK,
        D=params.D.float(),
        seq_idx=layout.seq_idx,
    )
    return kernels.gated_norm(
        y[0].flatten(1), params.norm_weight, None, z=z, eps=NORM_EPS, norm_before_gate=False
    )


def _why_not_fused(kernels: Kernels, zxbcdt: Tensor, params: MixerParams) -> str | None:
    """What causal_conv1d cannot do with these shapes."""
    (length, width), (channels, taps) = zxbcdt.shape, params.conv_weight.shape
    if kernels.fused is None:
        return kernels.why_split
    if channels % 8:
        return f"causal_conv1d needs channels in multiples of 8, not {channels}"
    if not 2 <= taps <= 4:
        return f"causal_conv1d needs 2 to 4 taps, not {taps}"
    if width % 8 and not kernels.strides:
        return f"mamba_ssm before 2.3 cannot fuse an in-projection {width} wide (not 8 n)"
    if length == 1:
        return "a single token has no row stride that causal_conv1d could check"
    return None


# How Triton says that a kernel does not fit a card, by name: Triton is not imported at this level.
_TOO_SMALL = ("OutOfResources", "PTXASError", "CompilationError")
_working: dict[tuple[object, ...], MixerFunction] = {}
_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


def _try(mix: MixerFunction, zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> None:
    """Run once on the values at hand, backward too where gradients are wanted; keep nothing.

    The true size and values matter: Triton tunes on them. The hooks keep a surrounding activation
    checkpoint from taking part.
    """
    grad = torch.is_grad_enabled()
    names = [name for name, value in params._asdict().items() if isinstance(value, Tensor)]
    leaves = [zxbcdt, *(getattr(params, name) for name in names)]
    copies = [leaf.detach().requires_grad_(grad) for leaf in leaves]
    own = params._replace(**dict(zip(names, copies[1:], strict=True)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        out = mix(copies[0], own, lengths)
        if grad:
            torch.autograd.grad(out, copies, torch.ones_like(out))
    if out.is_cuda:
        torch.cuda.synchronize(out.device)  # a launch that fails must fail here


def _choose(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> MixerFunction:
    """The first way that works for this shape on this device; logs why if it is not the fused."""
    kernels = _require_kernels()
    if not _interpreted():
        _say_once(logging.INFO, "compiling and tuning the Triton kernels (tens of seconds)")
    ways = [_mix_fused, _mix_split]
    if (reason := _why_not_fused(kernels, zxbcdt, params)) is not None:
        _say_once(logging.DEBUG, f"mamba_ssm's fused path is not used: {reason}")
        ways = [_mix_split]
    for mix in ways:
        try:
            _try(mix, zxbcdt, params, lengths)
            return mix
        except torch.OutOfMemoryError:  # of the card's main memory: nothing to do with the kernels
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if type(error).__name__ in _TOO_SMALL:
                break  # both ways share these kernels
            if mix is ways[-1]:
                raise
            # causal_conv1d compiled for other cards, say.
            _say_once(
                logging.WARNING,
                f"mamba_ssm's fused path does not run here ({reason}); the convolution runs in "
                "torch instead",
            )
    _say_once(
        logging.WARNING,
        f"the Triton kernels do not fit this GPU with heads of {params.headdim} and a state of "
        f"{params.d_state} ({reason}); the portable backend 'cpu' runs in their place, on the GPU, "
        "slower",
    )
    return BACKENDS["cpu"].run


def most_tokens(params: MixerParams) -> int:
    """Tokens from which on a tensor of the kernels would have 2^31 elements or more."""
    inner, heads = params.norm_weight.numel(), params.dt_bias.numel()
    largest = max(
        2 * inner + 2 * params.d_state + heads,  # zxbcdt
        heads * CHUNK,  # products inside the chunks, [L / Q, H, Q, Q]
        -(-inner * params.d_state // CHUNK),  # states of the chunks, [L / Q, H, P, N]
    )
    return (MOST_ELEMENTS - largest * CHUNK) // largest  # the last chunk may be padded


def _group(lengths: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Neighbouring sequences in groups of at most ``most`` tokens; a longer one stands alone."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= most:
            groups[-1].append(length)
        else:
            groups.append([length])
    return [tuple(group) for group in groups]


def _mix_group(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...], most: int) -> Tensor:
    if zxbcdt.shape[0] > most:
        _say_once(
            logging.WARNING,
            f"a sequence of {zxbcdt.shape[0]:,} tokens makes tensors of 2^31 elements, where the "
            f"Triton kernels' offsets overflow (most: {most:,} tokens); the portable backend 'cpu' "
            "runs in their place, on the GPU, slower",
        )
        return BACKENDS["cpu"].run(zxbcdt, params, lengths)
    key = (
        zxbcdt.device,
        zxbcdt.dtype,
        zxbcdt.shape[1],
        params.headdim,
        params.d_state,
        torch.is_grad_enabled(),
        zxbcdt.shape[0] == 1,  # see _why_not_fused
    )
    if key not in _working:
        _working[key] = _choose(zxbcdt, params, lengths)
    return _working[key](zxbcdt, params, lengths)


@functools.lru_cache(maxsize=16)
def doubt(device: torch.device) -> str | None:
    """None if the kernels agree with the reference on this device, else what differs; said once."""
    wrong = kernel_check.why_wrong(device, ways_to_call(), BACKENDS["cpu"].run)
    if wrong is not None:
        _say_once(
            logging.WARNING,
            f"{wrong}; the portable backend 'cpu' runs in their place, on the GPU, slower. Update "
            f"torch and mamba-ssm, or take the kernels nevertheless with --ssd_backend triton "
            f"({kernel_check.describe(device)})",
        )
    return wrong


def ways_to_call() -> dict[str, MixerFunction]:
    """The ways to call the kernels that the installed packages offer, by name."""
    fused: dict[str, MixerFunction] = {"fused": _mix_fused}
    return (fused if _require_kernels().fused is not None else {}) | {"split": _mix_split}


@register_backend("triton", why_not, detail=_detail, doubt=doubt)
def mix_triton(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """mamba_ssm's kernels on packed sequences; see ``mixer_core``. Computes in fp32 at most."""
    dtype, most = zxbcdt.dtype, most_tokens(params)
    if dtype == torch.float64:
        zxbcdt = zxbcdt.float()
        narrow: dict[str, Any] = {
            k: v.float() for k, v in params._asdict().items() if isinstance(v, Tensor)
        }
        params = params._replace(**narrow)
    groups = _group(lengths, most)
    if len(groups) == 1:
        return _mix_group(zxbcdt, params, lengths, most).to(dtype)
    pieces = zxbcdt.split([sum(group) for group in groups])
    mixed = [_mix_group(p, params, g, most) for p, g in zip(pieces, groups, strict=True)]
    return torch.cat(mixed).to(dtype)
