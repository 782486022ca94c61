"""Where the time of a training step goes: every part from the file to the optimiser.

    python benchmarks/training_step.py [--precision 32 bf16] [--allocator default retain]

A real run (flags, data set, Trainer, checkpoints, logging) pre-trains on windows of noise in the
MNI152 brain mask, or on a store of yours (``--image_path``). Clocks stand at its joints; the parts
between them add up to the step. Prints a table and writes it with the figures (``--json``).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from benchmarks._measure import resident
from benchmarks._report import in_child, parser, prepare, run, save, table
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.config.model import ModelConfig
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.writer import write_run
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import run_config
from neuromamba.planning import flops

WARM_UP = 2  # steps that do not count: memory is mapped, kernels are chosen
TARGET_SHARE = 0.85  # of a step of Base, in its blocks (issue "Compute")
BLOCKS = ("blocks forward", "blocks backward")
# In the order of a step.
PARTS = (
    "read the window",
    "plan the scatter",
    "to the device",
    "scale, scatter, patchify",
    "embed",
    "blocks forward",
    "output layer, loss",
    "log",
    "output layer, loss backward",
    "blocks backward",
    "embed backward",
    "clip",
    "optimiser",
    "loops and callbacks",
)


class Clock(Callback):
    """Cuts every training step at its joints; each piece of time is booked on a part.

    Args:
        module: of the run; its methods are wrapped and its blocks hooked, nothing is replaced.
    """

    def __init__(self, module: FMambaModule) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self.tokens: list[int] = []
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()
        self._forward = False
        self._cuts(module, "on_before_batch_transfer", "read the window", "plan the scatter")
        self._cuts(module, "training_step", "to the device", "output layer, loss")
        self._cuts(module, "pack", "to the device", "scale, scatter, patchify")
        self._cuts(module, "log_training_loss", "loops and callbacks", "log")
        self._cuts(module, "configure_gradient_clipping", "loops and callbacks", "clip")
        model = module.model
        self._joint(model.embedder, "embed", "blocks backward")
        for number, block in enumerate(model.mamba_layers):
            last = number == len(model.mamba_layers) - 1
            behind = "output layer, loss backward" if last else "blocks backward"
            self._joint(block, "blocks forward", behind)

    def cut(self, part: str) -> None:
        """Book the time since the last cut."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._spent[part] += now - self._last
        self._last = now

    def _cuts(self, owner: Any, name: str, before: str, during: str) -> None:
        """Cut where a method begins and where it ends."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.cut(before)
            result = method(*args, **kwargs)
            self.cut(during)
            return result

        setattr(owner, name, timed)

    def _joint(self, module: torch.nn.Module, during: str, behind: str) -> None:
        """Cut where a module's output is there, and where the gradient of that output is.

        Args:
            module: one of those that form the residual stream.
            during: what its forward pass is booked on.
            behind: what the backward pass of what comes after it is booked on.
        """

        def done(_: torch.nn.Module, inputs: Any, output: Tensor) -> None:
            if not self._forward:  # computed again in the backward pass
                return
            self.cut(during)
            output.register_hook(lambda gradient: self.cut(behind))

        module.register_forward_hook(done)

    # ------------------------------------------------------------------ called by the Trainer

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The optimiser is there now."""
        self._last = time.perf_counter()
        trainer.optimizers[0].register_step_post_hook(lambda *rest: self.cut("optimiser"))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """The forward pass is next."""
        self._forward = True
        indices = [plan.spatial_index.numel() for plan in batch["plans"]]
        self.tokens.append(sum(indices) * pl_module.model.config.token_grid[3])

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """The loss is there."""
        self._forward = False
        self.cut("loops and callbacks")

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        """The gradients are there."""
        self.cut("embed backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over, with what the Trainer logs."""
        self.cut("loops and callbacks")
        self.steps.append(self._spent)
        self._spent = dict.fromkeys(PARTS, 0.0)


class ClockedRun(Run):
    """A run as ``project/main.py`` starts it, with a clock."""

    def _fit(
        self,
        trainer: Trainer,
        module: FMambaModule,
        loaders: FMRIDataModule,
        point: Any,
        fault_tolerance: Any,
    ) -> dict[str, float]:
        self.clock = Clock(module)
        trainer.callbacks.append(self.clock)  # type: ignore[attr-defined]
        return super()._fit(trainer, module, loaders, point, fault_tolerance)


def profile(command: list[str], steps: int) -> dict[str, Any]:
    """Child: seconds of each part of a step, medians over ``steps`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [*command, "--output_dir", f"{folder}/run", "--max_steps", str(WARM_UP + steps)]
        clocked = ClockedRun(run_config(*parse_arguments(build_parser(), argv)))
        clocked.allocator.apply()
        clocked.execute()
    taken = clocked.clock.steps[WARM_UP:]
    whole = [sum(step.values()) for step in taken]
    shares = [
        sum(step[part] for part in BLOCKS) / total for step, total in zip(taken, whole, strict=True)
    ]
    return {
        "steps": len(taken),
        "tokens": statistics.median(clocked.clock.tokens),
        "parts": {part: statistics.median(step[part] for step in taken) for part in PARTS},
        "step": {"median": statistics.median(whole), "min": min(whole), "max": max(whole)},
        "share_of_blocks": statistics.median(shares),
        "peak_gb": resident("VmHWM") / 1e9,
    }


def mni_store(
    folder: Path,
    model: ModelConfig,
    windows: int,
    subjects: Sequence[str] = ("sub-01", "sub-02"),
) -> None:
    """A store of noise in the MNI152 mask, a window at each frame; of two, one is trained on."""
    mask, voxel = flops.mni_mask(model.img_size[:3])
    vox = np.flatnonzero(mask)
    frames = model.img_size[3] + windows - 1
    noise = np.random.default_rng(0).normal(1000, 100, (frames, len(vox))).astype(np.float32)
    (folder / "hdf5").mkdir(parents=True)
    for number, subject in enumerate(subjects):
        write_run(
            folder / "hdf5" / f"{subject}.h5",
            np.roll(noise, number, axis=1),  # no scan is another's
            vox,
            grid=model.img_size[:3],
            affine=np.diag([-voxel, voxel, voxel, 1.0]),
            source=RunSource(subject=subject, tr=2.0),
        )


def flags() -> argparse.ArgumentParser:
    """The flags of every benchmark, and what is particular to a training step."""
    ours = parser("training_step", __doc__, repeats=6)
    ours.add_argument("--image_path", metavar="DIR", help="HDF5 store; default: the MNI152 mask")
    ours.add_argument("--batch_size", type=int, default=1)
    ours.add_argument("--activation_checkpointing", action=argparse.BooleanOptionalAction)
    return ours


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = flags().parse_args(argv)
    model, started, rows = prepare(args), time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        store = args.image_path
        if store is None:
            store = f"{scratch}/store"
            mni_store(Path(store), model, args.batch_size * (WARM_UP + args.repeats))
        common = training_flags(model, store, args)
        for precision in args.precision:
            for allocator in args.allocator:
                case = ["--precision", precision, "--allocator", allocator]
                found = in_child(
                    "benchmarks.training_step:profile",
                    args.threads,
                    "default",  # the run sets its own
                    command=[*common, *case],
                    steps=args.repeats,
                )
                rows.append({"precision": precision, "allocator": allocator, **found})
    results = {"model": dataclasses.asdict(model), "cases": rows}
    save(args, started, results, report(model, args.batch_size, rows))
    return 0


def training_flags(model: ModelConfig, store: str, args: argparse.Namespace) -> list[str]:
    """The command line of the run, without what differs between cases."""
    size, patch = (" ".join(map(str, numbers)) for numbers in (model.img_size, model.patch_size))
    text = (
        f"--pretraining --use_autoregressive --dataset_name Dummy --train_split 0.9 --val_split 0 "
        f"--img_size {size} --patch_size {patch} --embed_dim {model.embed_dim} "
        f"--depth {model.depth} --stride_between_seq {1 / model.img_size[3]} "
        f"--batch_size {args.batch_size} --grad_clip 1 --ssd_backend {args.ssd_backend}"
    )
    again = ["--activation_checkpointing"] if args.activation_checkpointing else []
    return [*text.split(), *again, "--image_path", store]


def report(model: ModelConfig, batch: int, rows: list[dict[str, Any]]) -> str:
    """The table of parts, and what was set out to be reached."""
    names = [f"{row['precision']}, {row['allocator']}" for row in rows]

    def cell(row: dict[str, Any], seconds: float) -> str:
        return f"{1e3 * seconds:.1f} ({seconds / row['step']['median']:.1%})"

    lines: list[list[object]] = [
        [part, *(cell(row, row["parts"][part]) for row in rows)] for part in PARTS
    ]
    summary: dict[str, Callable[[dict[str, Any]], str]] = {
        "whole step": lambda row: f"{1e3 * row['step']['median']:.0f}",
        "from, to": lambda row: f"{1e3 * row['step']['min']:.0f}, {1e3 * row['step']['max']:.0f}",
        f"in the {model.depth} blocks": lambda row: f"{row['share_of_blocks']:.1%}",
        "peak memory, GB": lambda row: f"{row['peak_gb']:.2f}",
    }
    lines += [[name, *map(show, rows)] for name, show in summary.items()]
    tokens = int(rows[0]["tokens"])
    title = (
        f"A training step, {model.depth} layers of width {model.embed_dim}, batches of {batch}, "
        f"{tokens:,} tokens: milliseconds (share of the step),\nmedians over {rows[0]['steps']} "
        f"steps; columns: precision, allocator."
    )
    text = table(title, ["part", *names], lines)
    if (model.embed_dim, model.depth) == (192, 12):
        least = min(row["share_of_blocks"] for row in rows)
        text += (
            f"\nTarget: at least {TARGET_SHARE:.0%} of the step in the blocks; least of the "
            f"columns: {least:.1%}.\n"
        )
    return text


if __name__ == "__main__":
    sys.exit(run(main))
