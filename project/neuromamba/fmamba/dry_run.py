"""Describe what a run would do, for ``--dry_run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.data.windows.description import describe
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.planned import PlannedRun
from neuromamba.fmamba.run_config import RunConfig, describe_objective
from neuromamba.fmamba.steps import accumulation, epochs, total_steps
from neuromamba.fmamba.stores import locate_data
from neuromamba.fmamba.weight_counts import count_weights
from neuromamba.layers.ssd import select_backend


def _begins(run: PlannedRun) -> str:
    """Say from which checkpoint the run would resume; "" if that was not asked for.

    Raises:
        UserInputError: there is none to resume from.
    """
    config = run.config
    if not config.flags["resume_ckpt_path"]:
        return ""
    # Imported here: a checkpoint is read as Lightning wrote it, and other plans do without.
    from neuromamba.fmamba import run_outputs as outputs
    from neuromamba.fmamba.resume import find_resume_point

    run_dir = outputs.choose_run_dir(config, outputs.run_name(config))
    point = find_resume_point(config, run_dir)
    if point is None:
        return f"from the beginning: no checkpoint is in {run_dir} yet"
    return f"after step {point.progress['global_step']:,}, from {point.path}"


def _absent(config: RunConfig) -> list[tuple[str, str]]:
    named = [(flag, config.flags[flag]) for flag in ("load_model_path", "test_ckpt_path")]
    return [(flag, path) for flag, path in named if path and not Path(path).exists()]


def refuse_absent_checkpoints(config: RunConfig) -> None:
    """Say that a checkpoint is not there, after the plan that had to do without it.

    Data may be elsewhere when a job is planned. Without a checkpoint, the flags that it decides are
    not known, so that the plan is perhaps that of another model.

    Raises:
        UserInputError: names the flag.
    """
    for flag, path in _absent(config):
        raise UserInputError(
            f"--{flag}: there is no file '{path}'. Give the file of a checkpoint or the folder of "
            f"a run; the plan does without it."
        )


def _architecture(model: ModelConfig) -> str:
    if model.model == "swift":
        return model.description
    return (
        f"{model.model} D={model.embed_dim} depth={model.depth} N={model.d_state} "
        f"headdim={model.headdim}"
    )


def describe_plan(run: PlannedRun) -> str:
    """Say what the run would do, and what this machine lacks for it; nothing is written.

    Raises:
        UserInputError: data that are here cannot be used.
    """
    config, hardware = run.config, run.hardware
    missing = list(hardware.missing)
    data: RunData | None = None
    backend = config.flags["ssd_backend"]
    try:
        backend = select_backend(backend, torch.device(hardware.accelerator)).name
    except UserInputError as error:
        missing.append(str(error))
    try:
        data_config = locate_data(config, make_dummy=False)
    except UserInputError as error:
        missing.append(str(error))
    else:
        # A plan may be made where the data are not; what is wrong with data that are here is not.
        absent = [path for path in data_config.image_path if not Path(path).exists()]
        missing += [f"--image_path: there is no folder '{path}'." for path in absent]
        if not absent:
            data = RunData(data_config, config.downstream, write_split=False)
    begins = ""
    try:
        begins = _begins(run)
    except UserInputError as error:
        missing.append(str(error))
    missing += [f"--{flag}: there is no file '{path}'." for flag, path in _absent(config)]
    weights, model = count_weights(config), config.model
    rows: list[tuple[str, Any]] = [
        ("objective", describe_objective(config)),
        (
            "model",
            f"{_architecture(model)}: {weights.parameters:,} parameters, {weights.trained:,} "
            f"trainable",
        ),
        (
            "tokens",
            f"{model.num_tokens:,} of {model.token_dim} values a window"
            + (", all kept" if model.keep_background else ", background dropped"),
        ),
        ("hardware", f"{hardware.accelerator}, precision {hardware.precision_text}"),
        ("strategy", hardware.strategy),
        *([("state-space scan", f"{backend} backend")] if model.model == "fmamba" else []),
        ("memory", f"{run.allocator.name} allocator: {run.allocator.why}"),
        (
            "effective batch",
            f"{run.effective_batch:,} = micro batch {config.data.batch_size} x devices "
            f"{hardware.devices} x nodes {hardware.num_nodes} x accumulation "
            f"{accumulation(config)}",
        ),
        ("learning rate", f"{config.optim.learning_rate:g}, {config.optim.optimizer}"),
        ("epochs", epochs(config)),
        ("augmentation", config.augment.describe() if config.augment else "none"),
    ]
    if data is not None:
        rows += [("data", line) for line in describe(data)]
        batches = data.batches_in("train", hardware.ranks)
        windows = ", ".join(f"{p} {data.windows_in(p)}" for p in data.parts)
        rows.append(("windows", windows))
        rows.append(("steps", f"{total_steps(config, batches):,} optimiser steps"))
    else:
        rows.append(("steps", "not known without the data"))
    if begins:
        rows.append(("begins", begins))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines.append("")
    if missing:
        lines.append("missing on this machine:")
        lines += [f"  - {item}" for item in missing]
    else:
        lines.append("nothing is missing on this machine")
    return "\n".join(lines)
