"""Training steps on a CUDA GPU: ours beside the reference's design. Driven by ``gpu_check.sh``.

    python benchmarks/gpu_check.py [--sizes base large] [--batches 1 4] [--budget SECONDS]
    python benchmarks/gpu_check.py --device cpu --sizes tiny --quick     # does the program work?

A step is forward, backward and AdamW, under bf16 autocast with fp32 parameters (``--precision``),
from a batch that lies on the device to the updated weights. Contenders of a row have the same
weights and windows:

- ours: compact int16 windows, each sample's own brain tokens packed, ``--ssd_backend`` auto;
- ours, union: the same with the tokens that any sample of the batch has (``--union_mask``);
- ours, all: without background removal (``--keep_background``);
- reference: dense fp32 volumes [B, 1, X, Y, Z, T], background told by its value, union of the
  masks, a dense batch [B, L, D] through mamba_ssm's ``Mamba2`` module with its own settings;
- reference, all: the same without background removal.

"ours, union" and "reference" compute the same function of the same tokens: the losses of their
first forward passes, before anything is timed, are compared. Beside the memory that a step of ours
adds stands what ``neuromamba plan`` predicts for it. Masks are the MNI152 brain, moved by
up to a voxel from sample to sample. Contenders run in turns, with matrix products of the card's
best size among them; the share of their rate counts the model's matrix products only. Everything
measured so far is written after each row, so that a run that is cut short leaves its figures.

Exit status: 1 if a contender failed, losses on the same tokens differ or could not be compared, a
prediction of memory is off by more than 15 %, or nothing was measured; the table is printed all the
same. 2 without the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._report import RESULTS, TINY, table
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.config.model import ModelConfig
from neuromamba.config.training import OptimConfig, PretrainConfig
from neuromamba.fmamba.backbone import Embedder
from neuromamba.fmamba.build import load_model_config
from neuromamba.fmamba.optimizer import build_optimizer
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.fmamba.tokenizer import patchify, plan_compact, tokens_off_background
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.layers.ssd import BACKENDS, kernel_check, native, select_backend
from neuromamba.layers.ssd import triton as triton_backend
from neuromamba.planning.flops import forward_terms, mni_mask, training_total
from neuromamba.planning.step_memory import Step, step_memory

ROOT = Path(__file__).resolve().parents[1]
CARRIED_MASK = ROOT / "benchmarks" / "gpu_wheels" / "mni_mask_96.npz"
SIZES = ("small", "base", "medium", "large")
# Misalignment of the samples of a batch, in voxels.
SHIFTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0), (0, 0, -1), (1, 1, 0))
BACKGROUND = -2.0  # after scaling; below every voxel
GAIN = 1e-3
PRODUCTS = 8
ROW_SECONDS = 15.0  # of timed rounds; at least three are run


# Contenders that see the same tokens with the same weights have the same loss, but for rounding.
LOSS_BOUND = {"bf16": 2e-3, "32": 1e-4}
MEMORY_BOUND = 0.15
SAME_TOKENS = {"ours, union": "reference", "ours, all": "reference, all"}

# -------------------------------------------------------------------------------------- inputs


def brain_mask(grid: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """A brain mask [X, Y, Z] and where it is from: nilearn, what was carried, or an ellipsoid."""
    try:
        return mni_mask(grid)[0], "MNI152 (nilearn)"
    except ImportError:
        pass
    if grid == (96, 96, 96) and CARRIED_MASK.exists():
        with np.load(CARRIED_MASK) as file:
            return np.unpackbits(file["bits"]).reshape(grid).astype(bool), "MNI152 (carried)"
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid), indexing="ij")
    radii = (0.73, 0.9, 0.78)  # the MNI152 brain's sides in its field of view
    inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True))
    return np.asarray(inside <= 1), "ellipsoid (`make gpu-wheels` carries the MNI152 mask)"


def make_batch(config: ModelConfig, batch: int, device: torch.device) -> dict[str, Any]:
    """Compact windows as the data loader makes them, on the device; ``vox`` stays on the CPU."""
    mask, _ = brain_mask(tuple(config.img_size[:3]))
    generator = torch.Generator().manual_seed(0)
    bold, vox = [], []
    for i in range(batch):
        moved = np.roll(mask, SHIFTS[i % len(SHIFTS)], axis=(0, 1, 2))
        voxels = torch.from_numpy(np.flatnonzero(moved))
        values = torch.randn(config.img_size[3], len(voxels), generator=generator) * 400
        bold.append(values.clamp(-1900, 1900).to(torch.int16).to(device))
        vox.append(voxels)
    return {
        "bold": bold,
        "vox": vox,
        "gain": [GAIN] * batch,
        "shift": [0.0] * batch,
        "background": [BACKGROUND] * batch,
        "subject": [f"s{i}" for i in range(batch)],
        "sample_id": [f"s{i}" for i in range(batch)],
        "dataset": torch.zeros(batch, dtype=torch.long),
    }


def dense_volumes(batch: dict[str, Any], config: ModelConfig) -> Tensor:
    """The same windows as the reference holds them: fp32 [B, 1, X, Y, Z, T]."""
    volumes = []
    for bold, vox in zip(batch["bold"], batch["vox"], strict=True):
        x, y, z, t = config.img_size
        volume = bold.new_full((x * y * z, t), BACKGROUND, dtype=torch.float32)
        volume[vox.to(bold.device)] = bold.t().float() * GAIN
        volumes.append(volume.view(1, x, y, z, t))
    return torch.stack(volumes)


# ---------------------------------------------------------------------------------- contenders


class ReferenceDesign(nn.Module):
    """The reference's way to a loss, around a Mamba2 module that takes a dense batch [B, L, D].

    Args:
        config: the architecture, with or without background removal.
        mixers: one for each block.
    """

    def __init__(self, config: ModelConfig, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.embedder = Embedder(config)
        self.mamba_layers = nn.ModuleList(
            nn.ModuleList([RMSNorm(config.embed_dim), mixer]) for mixer in mixers
        )
        self.norm = RMSNorm(config.embed_dim)
        self.output_layer = nn.Linear(config.embed_dim, config.token_dim)

    def forward(self, fmri: Tensor) -> Tensor:
        """Mean squared error of the next token."""
        tokens = patchify(fmri, self.config.patch_size)
        pos = self.embedder.pos
        assert pos is not None
        if not self.config.keep_background:
            keep = tokens_off_background(tokens, "min").any(0)
            tokens, pos = tokens[:, keep], pos[:, keep]
        x = tokens @ self.embedder.projection + pos
        for norm, mixer in self.mamba_layers:  # type: ignore[misc]
            x = x + mixer(norm(x))
        prediction = self.output_layer(self.norm(x))
        return F.mse_loss(prediction[:, :-1].float(), tokens[:, 1:])


def reference_mixers(config: ModelConfig, device: torch.device) -> tuple[list[nn.Module], str]:
    """mamba_ssm's ``Mamba2`` for each block and its name; off CUDA transformers' stands in.

    Raises:
        UserInputError: neither can be imported.
    """
    if (reason := triton_backend.why_not(device)) is None:
        module = importlib.import_module("mamba_ssm.modules.mamba2")
        fused = module.causal_conv1d_fn is not None
        mixers = [
            module.Mamba2(
                config.embed_dim,
                d_state=config.d_state,
                d_conv=config.d_conv,
                expand=config.expand,
                headdim=config.headdim,
                use_mem_eff_path=fused,
            )
            for _ in range(config.depth)
        ]
        return mixers, f"mamba_ssm Mamba2, {'fused' if fused else 'convolution in torch'}"
    if device.type == "cuda":
        raise UserInputError(f"mamba_ssm's Mamba2 cannot run: {reason}")
    from benchmarks._contenders import TransformersMixer

    layers = [
        Mamba2(config.embed_dim, config.d_state, config.headdim, config.d_conv, config.expand)
        for _ in range(config.depth)
    ]
    return [TransformersMixer(layer, config, 256).mixer for layer in layers], "transformers Mamba2"


@dataclasses.dataclass
class Contender:
    """A model, its optimiser and how a batch becomes its loss.

    Attributes:
        loss: forward pass, under autocast.
        tokens: tokens of each sequence that runs through the blocks.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    tokens: tuple[int, ...]
    optimizer: torch.optim.Optimizer

    def step(self, device: torch.device, mixed: bool) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()


def ours(config: ModelConfig, batch: dict[str, Any], device: torch.device) -> Contender:
    """The training module as ``project/main.py`` runs it."""
    seed_run(0)
    optim = OptimConfig()
    module = PretrainModule(
        model=config, objective=PretrainConfig(), optim=optim, total_steps=1000
    ).to(device)
    planned = module.on_before_batch_transfer(dict(batch), 0)
    planned["plans"] = [
        type(plan)(*(value.to(device) for value in plan)) for plan in planned["plans"]
    ]
    planned["target_rows"] = planned["target_rows"].to(device)

    def loss() -> Tensor:
        return module.predict_tokens(planned)[1].mean()

    with torch.no_grad():
        lengths = module.pack(planned).lengths
    return Contender(module, loss, lengths, build_optimizer(module, optim))


def reference(
    config: ModelConfig, batch: dict[str, Any], device: torch.device, weights: Any
) -> tuple[Contender, str]:
    """The reference's design with our weights, and which Mamba2 it runs."""
    mixers, name = reference_mixers(config, device)
    model = ReferenceDesign(config, mixers)
    model.load_state_dict(weights)
    model.to(device)
    fmri = dense_volumes(batch, config)
    plan = plan_compact(batch["vox"], dataclasses.replace(config, union_mask=True))[0]
    kept = plan.spatial_index.numel() * config.token_grid[3]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=1e-2, fused=device.type == "cuda"
    )
    tokens = (kept,) * len(batch["bold"])
    return Contender(model, lambda: model(fmri), tokens, optimizer), name


# ------------------------------------------------------------------------------------ measuring


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def added_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """Peak of a call above what was allocated before, in GB (1e9 bytes); None off CUDA."""
    if device.type != "cuda":
        return None
    gc.collect()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e9


def matrix_product(device: torch.device, side: int) -> tuple[Callable[[], None], float]:
    """bf16 products of random squares, and their operations; random, for zeros run faster."""
    a, b, out = (torch.randn(side, side, device=device).bfloat16() for _ in range(3))

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    return run, 2.0 * PRODUCTS * side**3


def model_flops(config: ModelConfig, tokens: Sequence[int], products_only: bool = False) -> int:
    """Forward and backward of the model, each sequence by itself; recomputation is not counted."""
    return sum(training_total(forward_terms(config, n), products_only) for n in tokens)


def measure_row(
    size: str,
    config: ModelConfig,
    batch: int,
    device: torch.device,
    repeats: int,
    side: int,
    mixed: bool = True,
) -> list[dict[str, Any]]:
    """All contenders for one size and batch size, in turns."""
    data = make_batch(config, batch, device)
    variants = {
        "ours": config,
        "ours, union": dataclasses.replace(config, union_mask=True),
        "ours, all": dataclasses.replace(config, keep_background=True),
        "reference": config,
        "reference, all": dataclasses.replace(config, keep_background=True),
    }
    results: list[dict[str, Any]] = []
    ready: dict[str, Contender] = {}
    weights: Any = None
    for name, own in variants.items():
        row: dict[str, Any] = {"size": size, "batch": batch, "contender": name}
        results.append(row)
        try:
            if name.startswith("ours"):
                contender = ours(own, data, device)
                if weights is None:  # before the first step changes them
                    start_weights = contender.model.state_dict()
                    weights = {
                        key.removeprefix("model."): value.clone()
                        for key, value in start_weights.items()
                        if key.startswith("model.")
                    }
                row["runs"] = f"--ssd_backend {select_backend('auto', device).name}"
            else:
                contender, row["runs"] = reference(own, data, device, weights)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                row["first_loss"] = float(contender.loss())
            for _ in range(2):  # compile, tune, allocate
                contender.step(device, mixed)
            row["added_gb"] = added_memory(lambda c=contender: c.step(device, mixed), device)  # type: ignore[misc]
            if name.startswith("ours"):
                tokens = (own.num_tokens,) * batch if own.keep_background else contender.tokens
                row["predicted_gb"] = predicted_memory(own, tokens, data, mixed)
            ready[name] = contender
        except Exception as error:  # a contender that cannot run is a result, not the end
            row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
            if device.type == "cuda":
                torch.cuda.empty_cache()
    product, operations = matrix_product(device, side)
    product()
    spent: dict[str, list[float]] = {name: [] for name in (*ready, "product")}
    start = time.monotonic()
    for turn in range(repeats):
        if turn >= 3 and time.monotonic() - start > ROW_SECONDS:
            break
        names = list(spent)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            run = product if name == "product" else (lambda n=name: ready[n].step(device, mixed))  # type: ignore[misc]
            spent[name].append(seconds(run, device))
    rate = operations / statistics.median(spent["product"])
    losses = {row["contender"]: row.get("first_loss") for row in results}
    for row in results:
        if (name := row["contender"]) not in ready:
            continue
        tokens = ready[name].tokens
        if name.endswith("all"):
            tokens = (config.num_tokens,) * batch
        time_s = statistics.median(spent[name])
        flops = model_flops(config, tokens)
        row |= {
            "tokens": sum(tokens),
            "step_s": time_s,
            "fastest_s": min(spent[name]),
            "slowest_s": max(spent[name]),
            "windows_per_s": batch / time_s,
            "tokens_per_s": sum(tokens) / time_s,
            "tflops": flops / time_s / 1e12,
            "product_tflops": rate / 1e12,
            "share": model_flops(config, tokens, products_only=True) / time_s / rate,
        }
        other = losses.get(SAME_TOKENS.get(name, ""))
        if other is not None:
            row["loss_difference"] = abs(row["first_loss"] - other) / abs(other)
    return results


def predicted_memory(
    config: ModelConfig, tokens: Sequence[int], batch: dict[str, Any], mixed: bool
) -> float:
    """GB (1e9 bytes) that a step of ours adds, by ``planning.step_memory``.

    The batch is there before; so are gradients, which the step drops before it makes new ones.
    """
    device = batch["bold"][0].device
    peak = step_memory(
        Step(
            model=config,
            lengths=tuple(tokens),
            voxels=tuple(len(vox) for vox in batch["vox"]),
            backend=select_backend("auto", device).name,
            device=device.type,
            operand=2 if mixed else 4,
            native=native.status()[0] is not None,
            fused=any(w.__name__ == "_mix_fused" for w in triton_backend._working.values()),
        )
    )
    return (peak.total - peak.groups.get("batch", 0)) / 1e9


def faults(rows: Sequence[dict[str, Any]], bound: float) -> list[str]:
    """What is wrong with the figures, a line each; a loss that is NaN agrees with nothing."""
    found = [] if any("step_s" in row for row in rows) else ["nothing was measured."]
    for row in rows:
        who = f"{row['size']} x {row['batch']}, {row['contender']}"
        other = SAME_TOKENS.get(row["contender"])
        if (measured := row.get("added_gb")) and "predicted_gb" in row:
            off = row["predicted_gb"] / measured - 1
            if abs(off) > MEMORY_BOUND:
                found.append(f"{who}: the predicted memory is off by {off:+.0%}.")
        if "failed" in row:
            found.append(f"{who}: {row['failed']}")
        elif other is None:
            continue
        elif "loss_difference" not in row:
            found.append(f"{who}: there is no loss of '{other}' to compare with.")
        elif not row["loss_difference"] <= bound:
            apart = f"differ by {row['loss_difference']:.1e}, at most {bound:.0e} was expected."
            found.append(f"{who}: its loss and that of '{other}' {apart}")
    return found


# --------------------------------------------------------------------------------------- output


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in ("triton", "mamba-ssm", "causal-conv1d"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        **versions,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "device": card.name,
            "memory_gb": round(card.total_memory / 1e9, 1),
            "compute_capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
        }
    missing = triton_backend.why_not(device)
    facts["triton backend"] = missing or triton_backend._detail()
    if device.type == "cuda" and missing is None:
        facts |= compared_kernels(device)
    return facts


def compared_kernels(device: torch.device) -> dict[str, str]:
    """How far the kernels are from the reference here, by way and tokens; measured anew."""
    ways, portable = triton_backend.ways_to_call(), BACKENDS["cpu"].run
    found = kernel_check.compare(device, ways, portable)
    return {
        f"kernels, {one.way}, {one.tokens:,} tokens": (
            f"differ from the reference by {one.difference:.0e} at most ({one.where})"
        )
        for one in found
    }


def report(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = []
    for row in rows:
        head = (row["size"], row["batch"], row["contender"])
        if "step_s" not in row:
            lines.append((*head, row.get("failed", "not timed"), *[""] * 8))
            continue
        base = next(
            (
                other["step_s"]
                for other in rows
                if (other["size"], other["batch"]) == head[:2]
                and other["contender"] == "reference"
                and "step_s" in other
            ),
            None,
        )
        memory, expected = (
            "" if row.get(key) is None else f"{row[key]:.2f}"
            for key in ("added_gb", "predicted_gb")
        )
        lines.append(
            (
                *head,
                f"{row['tokens']:,}",
                f"{row['step_s'] * 1e3:.1f}",
                f"{row['windows_per_s']:.2f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['tflops']:.3g}",
                f"{row['share']:.1%}",
                memory,
                expected,
                "" if base is None else f"{base / row['step_s']:.2f}",
            )
        )
    columns = (
        "size",
        "batch",
        "contender",
        "tokens",
        "ms a step",
        "windows/s",
        "tokens/s",
        "TFLOP/s",
        "of the products' rate",
        "GB added",
        "GB predicted",
        "x reference",
    )
    facts = dict(facts)
    for name in ("ours", "reference"):
        facts[name] = ", ".join(
            sorted({r["runs"] for r in rows if r["contender"].startswith(name) and "runs" in r})
        )
    differences = [row["loss_difference"] for row in rows if "loss_difference" in row]
    if differences:  # np.max, for max() passes over a NaN
        facts["losses on the same tokens differ by"] = f"{np.max(differences):.1e}"
    about = table("Machine", ("", ""), list(facts.items()))
    return about + "\n" + table("Training steps", columns, lines)


def write(path: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """JSON, and the tables beside it as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(report(facts, rows), "utf-8")


def model_config(size: str) -> ModelConfig:
    """A published size, or the tiny model of the dry run."""
    return TINY if size == "tiny" else load_model_config(ROOT / f"configs/neuromamba_{size}.yaml")


def warm_up(sizes: Sequence[str], device: torch.device) -> None:
    """Compile the kernels of some sizes into Triton's cache on disk; times nothing."""
    for size in sizes:
        config = dataclasses.replace(model_config(size), depth=1)
        measure_row(size, config, 1, device, repeats=1, side=256)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    flags = argparse.ArgumentParser(prog="benchmarks/gpu_check.py", description=__doc__)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    flags.add_argument("--sizes", nargs="+", choices=[*SIZES, "tiny"], default=list(SIZES))
    flags.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    flags.add_argument("--repeats", type=int, default=10)
    flags.add_argument("--precision", choices=["bf16", "32"], default="bf16")
    flags.add_argument("--quick", action="store_true", help="two repeats, small products")
    flags.add_argument("--warm", action="store_true", help="only compile and tune the kernels")
    flags.add_argument("--chunk", type=int, default=None, help="of our Triton scan, 2^n")
    flags.add_argument(
        "--budget", type=float, default=float("inf"), help="begin no row after these seconds"
    )
    flags.add_argument("--json", type=Path, default=None, metavar="FILE")
    args = flags.parse_args(argv)
    start = time.monotonic()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch sees no CUDA GPU here.", file=sys.stderr)
        return 2
    if args.chunk is not None:
        if args.chunk < 16 or args.chunk & (args.chunk - 1):
            print("error: --chunk: expected a power of 2 from 16 on.", file=sys.stderr)
            return 2
        triton_backend.CHUNK = args.chunk
    device = torch.device(args.device)
    if args.warm:
        warm_up(args.sizes, device)
        return 0
    path = args.json or RESULTS / f"gpu_check_{args.device}.json"
    mixed = args.precision == "bf16"
    repeats, side = (2, 256) if args.quick else (args.repeats, 8192)
    facts, rows = environment(device), []
    facts["precision"] = "bf16 autocast, fp32 parameters" if mixed else "fp32"
    facts["mask"] = brain_mask(tuple(model_config(args.sizes[0]).img_size[:3]))[1]
    skipped = []
    # All sizes at one batch size before the next: a run cut short has seen every size.
    for batch in args.batches:
        for size in args.sizes:
            if time.monotonic() - start > args.budget:
                skipped.append(f"{size} x {batch}")
                continue
            try:
                rows += measure_row(size, model_config(size), batch, device, repeats, side, mixed)
            except torch.OutOfMemoryError as error:
                failed = {"contender": "all of them", "failed": str(error).splitlines()[0][:200]}
                rows.append({"size": size, "batch": batch, **failed})
            if device.type == "cuda":
                torch.cuda.empty_cache()
            write(path, facts, rows)
    if skipped:
        facts["not measured for lack of time"] = ", ".join(skipped)
    write(path, facts, rows)
    print(report(facts, rows))
    print(f"Figures: {path}")
    found = faults(rows, LOSS_BOUND[args.precision])
    for fault in found:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
