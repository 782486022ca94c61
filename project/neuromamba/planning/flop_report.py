"""Parameters, tokens and FLOPs of a run, as numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.planning import flops
from neuromamba.planning.deepspeed_flops import Comparison, compare
from neuromamba.planning.workload import read_workload

# NeuroMamba README, "Results": Medium, FLOPs an epoch with all and with brain tokens.
PUBLISHED = {"flops_per_epoch_all": 6.96e17, "flops_per_epoch": 3.72e17, "saving_percent": 46.5}


PROFILERS = ("torch", "deepspeed")


BACKEND_TOKENS = 130  # two whole chunks and a part of one: enough to run every backend for real


COUNTED = (
    "model FLOPs, a multiply-add is 2: matrix products, convolution, scan, norms and pointwise "
    "functions (1 each), with the pre-training output layer; backward is twice the forward, "
    "without the gradient of the input; not counted: optimiser, recomputation, data handling"
)

COUNTED_SWIFT = (
    "model FLOPs, a multiply-add is 2: matrix products, attention, norms and pointwise functions "
    "(1 each); backward is twice the forward, without the gradient of the input; not counted: "
    "padding of windows, optimiser, recomputation, data handling"
)


def count(run: RunConfig) -> dict[str, Any]:
    """Compute all figures of the JSON file.

    FLOPs are those of one window unless the key says otherwise; ``flops_per_*`` is the forward
    pass, ``training_flops_per_*`` forward and backward, ``flops_per_epoch`` training on the brain's
    tokens. ``products_*`` is the formula's share that ``profiler_*`` (FlopCounterMode) counts too,
    ``backends`` what it counts while a backend runs, ``deepspeed`` the other profiler's lines.
    What is of FMamba alone (backends of the scan, the published saving) is None for SwiFT.
    """
    profiler = look_up(run.flags["profiler"], PROFILERS, "--profiler")
    model = run.model
    deepspeed = compare(model, model.num_tokens) if profiler == "deepspeed" else None
    given = run.flags["windows_per_epoch"]
    if given is not None and given < 1:
        raise UserInputError(f"--windows_per_epoch: got {given}, expected 1 or more.")
    work = read_workload(model, run.data, given, "--windows_per_epoch")
    brain = round(work.tokens_brain)
    everything = flops.forward_terms(model, model.num_tokens)
    kept = flops.forward_terms(model, brain)
    training_all, training = flops.training_total(everything), flops.training_total(kept)
    windows = work.windows
    profiled = {
        "profiler_flops_per_window_all": flops.profiled_flops(model, model.num_tokens),
        "profiler_flops_per_window_brain": flops.profiled_flops(model, brain),
        "profiler_training_flops_per_window_brain": flops.profiled_flops(model, brain, True),
    }
    products = {
        "products_flops_per_window_all": flops.total(everything, products_only=True),
        "products_flops_per_window_brain": flops.total(kept, products_only=True),
        "products_training_flops_per_window_brain": flops.training_total(kept, products_only=True),
    }
    result: dict[str, Any] = {
        "parameters": flops.parameter_count(model),
        "tokens_all": model.num_tokens,
        "tokens_brain": work.tokens_brain,
        "tokens_source": work.tokens_source,
        "flops_per_window_all": flops.total(everything),
        "flops_per_window_brain": flops.total(kept),
        "training_flops_per_window_all": training_all,
        "training_flops_per_window_brain": training,
        "training_flops_per_batch_brain": training * run.data.batch_size,
        "saving_percent": 100.0 * (1 - flops.total(kept) / flops.total(everything)),
        "windows_per_epoch": windows,
        "windows_source": work.windows_source,
        "flops_per_epoch": None if windows is None else training * windows,
        "flops_per_epoch_all": None if windows is None else training_all * windows,
        "batches_per_epoch": None if windows is None else math.ceil(windows / run.data.batch_size),
        "counted": COUNTED if model.model == "fmamba" else COUNTED_SWIFT,
        **products,
        **profiled,
        **_of_the_scan(model),
        "deepspeed": None if deepspeed is None else [line._asdict() for line in deepspeed],
        "terms_brain": {term.name: term.flops for term in kept},
    }
    if run.head is not None and run.downstream is not None:
        result["head"] = f"{run.head.name}, {run.downstream.task}"
        result["head_parameters"] = flops.head_parameter_count(run.head, model)
        result["head_flops_per_window_brain"] = flops.total(
            flops.head_terms(run.head, model, brain)
        )
    return result


def _of_the_scan(model: ModelConfig) -> dict[str, Any]:
    """What only FMamba has: backends of its scan, and a saving that was published."""
    if model.model != "fmamba":
        names = ("backend_tokens", "backends_formula", "backends")
        return dict.fromkeys((*names, "tokens_for_published_saving", "published"))
    return {
        "backend_tokens": BACKEND_TOKENS,
        "backends_formula": flops.training_total(
            flops.forward_terms(model, BACKEND_TOKENS), products_only=True
        ),
        "backends": flops.counted_by_backend(model, BACKEND_TOKENS),
        "tokens_for_published_saving": flops.tokens_for_share(
            model, PUBLISHED["flops_per_epoch"] / PUBLISHED["flops_per_epoch_all"]
        ),
        "published": PUBLISHED,
    }


def table(run: RunConfig, result: dict[str, Any]) -> str:
    """Format the figures as text."""
    model = run.model
    everything = flops.forward_terms(model, result["tokens_all"])
    kept = flops.forward_terms(model, round(result["tokens_brain"]))
    share = result["tokens_brain"] / result["tokens_all"]
    size, patch = _times(model.img_size), _times(model.patch_size)
    fmamba = model.model == "fmamba"
    about = f"{model.description}, attention in windows of {_times(model.swin_window)} patches"
    if fmamba:
        about = f"{model.model}: D {model.embed_dim}, {model.depth} blocks, N {model.d_state}, "
        about += f"{model.nheads} heads of {model.headdim}"
    lines = [
        f"{about}; window {size}, patch {patch}",
        f"Counted: {result['counted']}.",
        "",
        f"parameters                   {result['parameters']:>16,}  "
        f"{'with the output layer' if fmamba else 'without a head'}",
        f"tokens of a window, all      {result['tokens_all']:>16,}",
        f"tokens of a window, brain    {result['tokens_brain']:>16,.0f}  {share:.1%}; "
        f"{result['tokens_source']}",
        "",
        f"{'forward, GFLOPs a window':<40} {'formula (one block)':<26} {'all':>9} {'brain':>9}",
    ]
    for one, other in zip(everything, kept, strict=True):
        lines.append(
            f"  {one.name:<38} {one.formula:<26} {one.flops / 1e9:9.3f} {other.flops / 1e9:9.3f}"
        )

    def row(name: str, kind: str) -> None:
        both = (result[f"{kind}flops_per_window_{part}"] / 1e9 for part in ("all", "brain"))
        lines.append(f"  {name:<65} {next(both):9.3f} {next(both):9.3f}")

    row("sum", "")
    row("of it matrix products, formula", "products_")
    row("matrix products, torch FlopCounterMode", "profiler_")
    row("training (forward and backward), sum", "training_")
    differences = [
        result[f"products_{key}"] / result[f"profiler_{key}"] - 1
        for key in (
            "flops_per_window_all",
            "flops_per_window_brain",
            "training_flops_per_window_brain",
        )
    ]
    lines += [
        "  formula against FlopCounterMode (forward all, forward brain, training brain): "
        + ", ".join(f"{value:+.2%}" for value in differences),
    ]
    if fmamba:
        lines.append(
            f"  the same, each backend running {result['backend_tokens']} tokens forward and "
            f"backward: "
            + ", ".join(
                f"{name} {value / result['backends_formula'] - 1:+.2%}"
                if isinstance(value, int)
                else f"{name} not run ({value})"
                for name, value in result["backends"].items()
            )
        )
    if result["deepspeed"] is not None:
        lines += ["", *_deepspeed_lines([Comparison(**line) for line in result["deepspeed"]])]
    saving = f"saving by dropping background: {result['saving_percent']:.1f} % of the forward pass"
    lines += [
        "",
        saving if fmamba else f"{model.display_name} reads all tokens; no background is dropped",
        f"training, batch of {run.data.batch_size}: "
        f"{result['training_flops_per_batch_brain']:.3e} FLOPs",
    ]
    if result["windows_per_epoch"] is None:
        lines.append(f"epoch: {result['windows_source']}")
    else:
        lines += [
            f"epoch: {result['windows_per_epoch']:,} windows ({result['windows_source']}), "
            f"{result['batches_per_epoch']:,} batches",
            f"training FLOPs an epoch: {result['flops_per_epoch_all']:.3e} (all) -> "
            f"{result['flops_per_epoch']:.3e} (brain)",
        ]
    if fmamba:
        lines.append(_published(result))
    if "head" in result:
        lines.append(
            f"downstream head ({result['head']}), not in the figures above: "
            f"{result['head_parameters']:,} parameters, "
            f"{result['head_flops_per_window_brain'] / 1e9:.4f} GFLOPs a window"
        )
    return "\n".join(lines)


def _published(result: Mapping[str, Any]) -> str:
    """The published saving, and how many tokens make it here."""
    needed = result["tokens_for_published_saving"]
    return (
        f"published (NeuroMamba README, Medium, the paper's data, DeepSpeed profiler): "
        f"{PUBLISHED['flops_per_epoch_all']:.2e} -> {PUBLISHED['flops_per_epoch']:.2e}, "
        f"{PUBLISHED['saving_percent']} % saved. Here that takes {needed:,} of "
        f"{result['tokens_all']:,} tokens ({needed / result['tokens_all']:.2%}). The paper's "
        f"number of windows is not public: compare the percentages, not the totals; see "
        f"paper/flops.md."
    )


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _deepspeed_lines(lines: Sequence[Comparison]) -> list[str]:
    """DeepSpeed's count beside the formula, a line for each term, and what the sums differ by."""
    whole = Comparison(
        "sum",
        sum(line.formula for line in lines),
        sum(line.as_kernel for line in lines),
        sum(line.in_torch for line in lines),
        "",
    )
    lacking = whole.as_kernel - whole.formula
    left = ", ".join(
        f"{line.name.removeprefix('block: ')} ({(line.as_kernel - line.formula) / 1e9:+.3f})"
        for line in lines
        if line.as_kernel
    )
    text = [
        "DeepSpeed's flops profiler, forward pass (it knows no other), all tokens, GFLOPs a window",
        "It counts the torch functions that it replaces. 'torch': the scan in such functions "
        "(conv1d, einsum); 'kernel': the scan as one kernel, of which it sees nothing.",
        f"  {'':<38} {'formula':>9} {'kernel':>9} {'torch':>9}  torch less formula",
    ]
    for line in (*lines, whole):
        numbers = " ".join(f"{value / 1e9:9.3f}" for value in line[1:4])
        gap = line.in_torch - line.formula
        if gap == 0:
            reason = "same"
        elif line.formula == 0 or line.in_torch == 0:
            reason = f"{gap / 1e9:+.3f}: {line.why}"
        else:
            reason = f"{gap / 1e9:+.3f} ({gap / line.formula:+.2%}): {line.why}"
        text.append(f"  {line.name:<38} {numbers}  {reason.removesuffix(': ')}")
    text.append(
        f"  kernel less formula: {lacking / 1e9:+.3f} GFLOPs ({lacking / whole.formula:+.1%}); "
        f"of the terms only these are left: {left}"
    )
    return text
