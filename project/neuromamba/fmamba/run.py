"""One run: pre-train, fine-tune or test, and write its results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer

from neuromamba.common.denormals import denormals_as_zeros
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.data.windows.description import describe
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.result_files import write_metrics
from neuromamba.fmamba import builders, weights
from neuromamba.fmamba import run_outputs as outputs
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.dynamic_skill import missing_dynamics
from neuromamba.fmamba.failures import explained
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.planned import PlannedRun
from neuromamba.fmamba.resume import (
    COMPUTED,
    ResumePoint,
    change_of_machine,
    check_resumable,
    computed_in,
    find_resume_point,
    step_settings,
)
from neuromamba.fmamba.run_config import RunConfig, describe_objective
from neuromamba.fmamba.steps import check_limits, total_steps
from neuromamba.fmamba.stores import locate_data
from neuromamba.fmamba.trainer import build_trainer
from neuromamba.layers.ssd import select_backend
from neuromamba.training import launch
from neuromamba.training.checkpoint_writer import clean_up
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.resume_state import count_last_epoch, resume_by_epochs
from neuromamba.training.run_lock import RunLock
from neuromamba.training.stopping import seconds_of


class Evaluated(NamedTuple):
    """The predictions that the first rank has written.

    Attributes:
        run_dir: the folder of the run.
        data: the data whose subjects they are of.
    """

    run_dir: Path
    data: RunData


class Run(PlannedRun):
    """A run that is carried out.

    After ``execute``, ``evaluated`` says what there is to evaluate further; None where this is not
    the first rank, or was no downstream task.

    Args:
        config: from ``run_config``.

    Raises:
        UserInputError: what cannot be right on any machine.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.evaluated: Evaluated | None = None

    def execute(self) -> dict[str, float]:
        """Carry the run out; return what ``metrics.json`` holds.

        Raises:
            UserInputError: missing hardware or data, or a checkpoint that does not fit; the run
                folder is made only after all of it has been checked.
            StoppedRun: all ranks have ended early, and saved.
            EndedElsewhereError: another rank has failed, and reports the reason.
            KeyboardInterrupt: after Ctrl-C; its text says how to continue.
        """
        trainer = self.config.trainer
        fault_tolerance = FaultTolerance(
            seconds_of(trainer["max_time"]) if "max_time" in trainer else None,
            self.config.flags["skip_bad_batches"],
        )
        try:
            metrics = self._execute(fault_tolerance)
            fault_tolerance.siblings.part()
            return metrics
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
            raise KeyboardInterrupt(fault_tolerance.advice) from None
        except Exception as error:
            raised = explained(error, fault_tolerance, self.config, self.hardware)
            if raised is error:
                raise
            raise raised from None
        finally:
            fault_tolerance.end()

    @denormals_as_zeros()
    def _execute(self, fault_tolerance: FaultTolerance) -> dict[str, float]:
        config = self.config
        self._prepare_process()
        data = RunData(locate_data(config, make_dummy=True), config.downstream)
        if config.downstream is not None:
            check_evaluation(data, config.flags)
        loaders = FMRIDataModule(data)
        batches = {part: data.batches_in(part, self.hardware.ranks) for part in data.parts}
        check_limits(config, batches)
        loaders.cache_bytes(self.hardware.devices)
        module = builders.build_module(config, data, total_steps(config, batches["train"]))
        weights.load_weights(module, config, data)
        parameters = sum(p.numel() for p in module.parameters())  # before ZeRO-3 shards them
        name = outputs.run_name(config)
        run_dir = outputs.choose_run_dir(config, name)
        fault_tolerance.lock = RunLock(outputs.folder_flag(config), run_dir)
        launch.agreed_or_refused("continued", fault_tolerance.lock.take)
        point = self._resume_point(run_dir, module, fault_tolerance)
        trainer = build_trainer(
            config,
            self.hardware,
            run_dir,
            name,
            data.windows_in("val") > 0,
            fault_tolerance,
            None if point is None else point.progress,
        )
        resume_by_epochs(trainer)
        outputs.make_folders(config, run_dir)
        launch.agreed_or_refused("begun", fault_tolerance.lock.take)
        if trainer.is_global_zero:
            clean_up(run_dir / "checkpoints")
            outputs.write_config(config, run_dir / "config.yaml")
            data.write_splits(run_dir / "splits")
            print(opening_lines(self, module, data, run_dir, point), flush=True)
        metrics = (
            self._test(trainer, module, loaders)
            if config.flags["test_only"]
            else self._fit(trainer, module, loaders, point, fault_tolerance)
        )
        if fault_tolerance.agreement.allowed:
            metrics["train/skipped_steps"] = float(fault_tolerance.agreement.skipped)
        metrics |= {
            "model/parameters": float(parameters),
            **{f"data/subjects_{p}": float(sum(map(len, n))) for p, n in data.subjects.items()},
            **{f"data/windows_{p}": float(data.windows_in(p)) for p in data.parts},
        }
        if trainer.is_global_zero:
            if isinstance(module, DownstreamModule):
                outputs.write_all_predictions(module, data, run_dir)
                self.evaluated = Evaluated(run_dir, data)
            write_metrics(metrics, run_dir / "metrics.json")
            shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}
            width = max([24, *(len(name) + 1 for name in shown)])
            print("".join(f"{k:<{width}}{v:.4f}\n" for k, v in sorted(shown.items())), end="")
            print(f"results in {run_dir}", flush=True)
            dynamic_skill = metrics.get("val/dynamic_skill")
            note = missing_dynamics(dynamic_skill, config.data.input_scaling_method)
            if note:
                print(f"warning: {note}", flush=True)
        return metrics

    def _prepare_process(self) -> None:
        """Check the hardware, start the ranks, choose the scan, and seed the random numbers."""
        self.hardware.require()
        launch.prepare(self.hardware.devices, self.hardware.num_nodes)
        if self.config.model.model == "fmamba":  # SwiFT has no scan
            backend = self.config.flags["ssd_backend"]
            select_backend(backend, torch.device(self.hardware.accelerator))
        seed_run(self.config.flags["seed"])

    def _resume_point(
        self, run_dir: Path, module: FMambaModule, fault_tolerance: FaultTolerance
    ) -> ResumePoint | None:
        """Find the checkpoint to resume from, and tell the fault tolerance about the run.

        Raises:
            UserInputError: the run cannot continue it.
        """
        flags, options = self.config.flags, self.config.trainer
        point = find_resume_point(self.config, run_dir)
        if point is not None:
            check_resumable(point, self.config, self.hardware, module)
            fault_tolerance.start = f"'{point.path}' (step {point.progress['global_step']})"
        keeps = options.get("enable_checkpointing", True) and not options.get("fast_dev_run")
        fault_tolerance.describe_run(
            run_dir,
            step_settings(self.config, self.hardware) | {COMPUTED: computed_in(self.hardware)},
            keeps_checkpoints=bool(keeps) and not flags["test_only"],
            resumes=flags["resume_ckpt_path"] == "last",
            names_folder=bool(flags["output_dir"] or flags["process_code"]),
        )
        return point

    def _fit(
        self,
        trainer: Trainer,
        module: FMambaModule,
        loaders: FMRIDataModule,
        point: ResumePoint | None,
        fault_tolerance: FaultTolerance,
    ) -> dict[str, float]:
        fault_tolerance.start_clock(0.0 if point is None else point.progress.get("seconds", 0.0))
        path = None if point is None else str(point.path)
        trainer.fit(module, datamodule=loaders, ckpt_path=path)
        count_last_epoch(trainer)
        before = math.nan if point is None else point.progress.get("loss", math.nan)
        metrics = {
            "train/loss": float(trainer.callback_metrics.get("train/loss", before)),
            "train/steps": float(trainer.global_step),
            "train/seconds": fault_tolerance.seconds,
        }
        # The validation set has chosen the best weights; the test set is used once, with them.
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        quiet: dict[str, Any] = {"datamodule": loaders, "verbose": False, "ckpt_path": best}
        if loaders.data.windows_in("val"):
            metrics |= _floats(trainer.validate(module, **quiet))
        if isinstance(module, DownstreamModule):
            metrics |= _floats(trainer.test(module, **quiet))
        return metrics

    def _test(
        self, trainer: Trainer, module: FMambaModule, loaders: FMRIDataModule
    ) -> dict[str, float]:
        quiet: dict[str, Any] = {"datamodule": loaders, "verbose": False}
        metrics = {}
        if self.config.flags["adjust_thresh"]:  # the threshold is chosen on validation subjects
            metrics = _floats(trainer.validate(module, **quiet))
        return metrics | _floats(trainer.test(module, **quiet))


def check_evaluation(data: RunData, flags: Mapping[str, Any]) -> None:
    """Refuse before the training what could not be evaluated after it.

    Raises:
        UserInputError: no test subjects, unusable confounds, or a class that is missing.
    """
    if not data.windows_in("test"):
        raise UserInputError(
            "--train_split/--val_split: no test subjects are left to evaluate on; lower them."
        )
    if flags["confounds"]:
        data.confounds(flags["confounds"])
    if flags["adjust_thresh"] and len(set(data.targets_of_samples("val"))) < 2:
        raise UserInputError(
            "--adjust_thresh: needs validation subjects of both classes; raise --val_split."
        )


def opening_lines(
    run: Run, module: FMambaModule, data: RunData, run_dir: Path, point: ResumePoint | None
) -> str:
    """Say what a run is about to do: objective, size, data, folder, and where it resumes."""
    config, hardware = run.config, run.hardware
    parameters = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    some = "" if trained == parameters else f", {trained:,} of them trained"
    steps = f", {module.total_steps:,} steps of {run.effective_batch}"
    augment = config.augment
    lines = [
        f"{describe_objective(config)}: {parameters:,} parameters{some}"
        f"{'' if config.flags['test_only'] else steps}, on "
        f"{hardware.accelerator} ({hardware.precision_text})",
        *describe(data),
        *([f"augmentation: {augment.describe()}"] if augment else []),
        f"writing to {run_dir}",
    ]
    if point is not None:
        lines.append(f"continuing after step {point.progress['global_step']:,}, from {point.path}")
        lines += change_of_machine(point, hardware)
    elif config.flags["resume_ckpt_path"]:
        lines.append("no checkpoint yet: starting from the beginning")
    return "\n".join(lines)


def _floats(results: Any) -> dict[str, float]:
    return {key: float(value) for part in results for key, value in part.items()}
