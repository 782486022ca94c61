"""One run: pre-train, fine-tune or test, and write its results."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer

from neuromamba.checkpoints.io import (
    CheckpointContents,
    load_backbone,
    load_strictly,
    names_in_module,
    read_checkpoint,
)
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.labels import target_of
from neuromamba.data.cohorts.splits import names_for_message
from neuromamba.data.windows.data_module import DATASETS, FMRIDataModule
from neuromamba.evaluation.metrics import subject_key
from neuromamba.evaluation.result_files import PREDICTIONS, write_metrics
from neuromamba.fmamba import run_outputs as outputs
from neuromamba.fmamba.failures import explained
from neuromamba.fmamba.module import (
    UNSCALED,
    DownstreamModule,
    FMambaModule,
    PretrainModule,
    TargetScaling,
)
from neuromamba.fmamba.resume import ResumePoint, check_resumable, find_resume_point, step_settings
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.trainer import accumulation, build_trainer, check_limits, total_steps
from neuromamba.layers.ssd import select_backend
from neuromamba.training import launch
from neuromamba.training.allocator import choose_allocator
from neuromamba.training.checkpoint_writer import clean_up
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.resume_state import count_last_epoch, resume_by_epochs
from neuromamba.training.run_lock import RunLock
from neuromamba.training.stopping import seconds_of
from neuromamba.training.strategies import Hardware, resolve_hardware

PAPER_EFFECTIVE_BATCH = 1152  # Appendix B
DUMMY_FRAMES = 40


class Evaluated(NamedTuple):
    """What the first rank has predictions of.

    Attributes:
        run_dir: where they are.
        data: whose subjects they are of.
    """

    run_dir: Path
    data: FMRIDataModule


class Run:
    """A run with its configuration checked and its hardware resolved.

    After ``execute``, ``evaluated`` says what there is to evaluate further; None where this is not
    the first rank, or was no downstream task.

    Args:
        config: from ``run_config``.

    Raises:
        UserInputError: what cannot be right on any machine.
    """

    def __init__(self, config: RunConfig) -> None:
        self.hardware: Hardware = resolve_hardware(
            config.trainer, config.flags["deepspeed_autocast"]
        )
        self.allocator = choose_allocator(config.flags["allocator"], self.hardware.accelerator)
        if config.downstream is not None and not config.downstream.has_own_targets:
            for name in config.data.dataset_name:
                target_of(DATASETS[name], config.downstream.task)
        self.config = self._scaled_rate(config)
        self.evaluated: Evaluated | None = None

    @property
    def effective_batch(self) -> int:
        """Windows of an optimiser step: micro batch x devices x nodes x accumulation."""
        return self.config.data.batch_size * self.hardware.ranks * accumulation(self.config)

    def _scaled_rate(self, config: RunConfig) -> RunConfig:
        """Apply ``--lr_scaling``."""
        if not config.optim.lr_scaling:
            return config
        effective = config.data.batch_size * self.hardware.ranks * accumulation(config)
        rate = config.optim.learning_rate * effective / PAPER_EFFECTIVE_BATCH
        return dataclasses.replace(
            config, optim=dataclasses.replace(config.optim, learning_rate=rate)
        )

    def objective(self) -> str:
        """What the run is, in a few words."""
        pretrain, task, head = self.config.pretrain, self.config.downstream, self.config.head
        if pretrain is not None:
            if pretrain.objective == "mim":
                return (
                    f"pre-training, masked tokens ({pretrain.masking_type}, {pretrain.mask_ratio})"
                )
            return "pre-training, next token"
        assert task is not None and head is not None
        if self.config.flags["test_only"]:
            mode = "test only"
        elif task.lora_rank:
            mode = f"fine-tuning with LoRA of rank {task.lora_rank}"
        elif task.freeze_feature_extractor:
            mode = "frozen backbone"
        else:
            mode = "full fine-tuning" if self.config.flags["load_model_path"] else "from scratch"
        return f"{task.task} ({task.task_type}), {head.name} head, {mode}"

    def execute(self) -> dict[str, float]:
        """Carry the run out; returns what ``metrics.json`` holds.

        Raises:
            UserInputError: missing hardware or data, or a checkpoint that does not fit; the run
                folder is made only after all of it has been checked.
            StoppedRun: all ranks have ended before their time, and saved.
            EndedElsewhereError: another rank has failed, and says why.
            KeyboardInterrupt: after Ctrl-C; says how to go on.
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

    def _execute(self, fault_tolerance: FaultTolerance) -> dict[str, float]:
        config, flags = self.config, self.config.flags
        self.hardware.require()
        launch.prepare(self.hardware.devices, self.hardware.num_nodes)
        select_backend(flags["ssd_backend"], torch.device(self.hardware.accelerator))
        seed_run(flags["seed"])
        data = FMRIDataModule(self.data_config(make_dummy=True), config.downstream)
        if config.downstream is not None:
            self._check_evaluation(data)
        batches = {part: data.batches_in(part, self.hardware.ranks) for part in data.parts}
        check_limits(config, batches)
        data.cache_bytes(self.hardware.devices)
        steps = total_steps(config, batches["train"])
        module = self.build_module(data, steps)
        self._load_weights(module, data)
        parameters = sum(p.numel() for p in module.parameters())  # ZeRO-3 will cut them up
        name = outputs.run_name(config)
        run_dir = outputs.choose_run_dir(config, name)
        fault_tolerance.lock = RunLock(outputs.folder_flag(config), run_dir)
        launch.agreed_or_refused("continued", fault_tolerance.lock.take)
        point = find_resume_point(config, run_dir)
        if point is not None:
            check_resumable(point, config, self.hardware, module)
            fault_tolerance.start = f"'{point.path}' (step {point.taken['global_step']})"
        flags, options = config.flags, config.trainer
        keeps = options.get("enable_checkpointing", True) and not options.get("fast_dev_run")
        fault_tolerance.describe_run(
            run_dir,
            step_settings(config, self.hardware),
            keeps_checkpoints=bool(keeps) and not flags["test_only"],
            resumes=flags["resume_ckpt_path"] == "last",
            names_folder=bool(flags["output_dir"] or flags["process_code"]),
        )
        trainer = build_trainer(
            config,
            self.hardware,
            run_dir,
            name,
            data.windows_in("val") > 0,
            fault_tolerance,
            None if point is None else point.taken,
        )
        resume_by_epochs(trainer)
        outputs.make_folders(config, run_dir)
        launch.agreed_or_refused("begun", fault_tolerance.lock.take)
        if trainer.is_global_zero:
            clean_up(run_dir / "checkpoints")
            outputs.write_config(config, run_dir / "config.yaml")
            data.write_splits(run_dir / "splits")
            print(self._opening_lines(module, data, steps, run_dir, point), flush=True)
        metrics = (
            self._test(trainer, module, data)
            if flags["test_only"]
            else self._fit(trainer, module, data, point, fault_tolerance)
        )
        if fault_tolerance.allowed:
            metrics["train/skipped_steps"] = float(fault_tolerance.skipped)
        metrics |= {
            "model/parameters": float(parameters),
            **{f"data/subjects_{p}": float(sum(map(len, n))) for p, n in data.subjects.items()},
            **{f"data/windows_{p}": float(data.windows_in(p)) for p in data.parts},
        }
        if trainer.is_global_zero:
            if isinstance(module, DownstreamModule):
                for part, seen in module.seen.items():
                    outputs.write_predictions(
                        seen,
                        data.unit_names(part),
                        module.task.task_type == "classification",
                        run_dir / PREDICTIONS[part],
                    )
                self.evaluated = Evaluated(run_dir, data)
            write_metrics(metrics, run_dir / "metrics.json")
            shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}
            print("".join(f"{k:<24}{v:.4f}\n" for k, v in sorted(shown.items())), end="")
            print(f"results in {run_dir}", flush=True)
        return metrics

    def _check_evaluation(self, data: FMRIDataModule) -> None:
        """Refuse before the training what could not be evaluated after it."""
        if not data.windows_in("test"):
            raise UserInputError(
                "--train_split/--val_split: no test subjects are left to evaluate on; lower them."
            )
        if self.config.flags["confounds"]:
            data.confounds(self.config.flags["confounds"])
        if self.config.flags["adjust_thresh"] and len(set(data.targets_of_units("val"))) < 2:
            raise UserInputError(
                "--adjust_thresh: needs validation subjects of both classes; raise --val_split."
            )

    def data_config(self, make_dummy: bool) -> Any:
        """The data configuration, with a store made for Dummy where no folder was given."""
        config = self.config.data
        if self.config.flags["image_path"]:
            return config
        if config.dataset_name != ("Dummy",):
            raise UserInputError(
                "--image_path: not given; name the folder of the HDF5 store of each data set."
            )
        subjects, effect = (
            self.config.flags["dummy_subjects"],
            self.config.flags["dummy_effect_size"],
        )
        grid = "x".join(str(n) for n in config.img_size)
        frames = max(DUMMY_FRAMES, 2 * config.window_span)
        path = Path("output") / "dummy" / f"{grid}_{frames}f_{subjects}s_effect{effect:g}"
        if make_dummy:
            # Imported here: the generator needs nilearn and scipy, which take seconds to load.
            from neuromamba.data.synthetic.runs import ensure_dummy_store

            ensure_dummy_store(
                path,
                subjects=subjects,
                frames=frames,
                grid=config.img_size,
                effect_size=effect,
            )
        elif not path.exists():
            raise UserInputError(
                f"--image_path: not given; {subjects} synthetic subjects will be made in '{path}'."
            )
        return dataclasses.replace(config, image_path=(str(path),))

    def build_module(self, data: FMRIDataModule | None, steps: int) -> FMambaModule:
        """The LightningModule, freshly initialised; without data for a plan."""
        config = self.config
        card = {} if data is None else data.card()
        backend, again = config.flags["ssd_backend"], config.flags["activation_checkpointing"]
        if config.pretrain is not None:
            return PretrainModule(
                config.model,
                config.pretrain,
                config.optim,
                steps,
                config.flags["seed"],
                backend,
                card,
                again,
                config.augment,
                self._watched(data),
            )
        assert config.downstream is not None and config.head is not None
        scaling, weights = UNSCALED, None
        if data is not None and config.downstream.task_type == "regression":
            scaling = TargetScaling(*data.target_scaling())
        elif data is not None:
            weights = data.class_weights()
        module = DownstreamModule(
            config.model,
            config.head,
            config.downstream,
            config.optim,
            steps,
            scaling,
            backend,
            card,
            again,
            config.augment,
            weights,
        )
        if data is None:
            module.adapt()
        return module

    def _watched(self, data: FMRIDataModule | None) -> tuple[dict[int, int], str]:
        """Classes of the validation subjects for ``--watch_task``, by subject key; and its name."""
        task = self.config.flags["watch_task"]
        if task is None or data is None:
            return {}, ""
        labelled = FMRIDataModule(data.config, DownstreamConfig(task), write_split=False)
        return {
            subject_key(name, number): int(store.labels[name])
            for number, (store, names) in enumerate(
                zip(labelled.stores, labelled.subjects["val"], strict=True)
            )
            for name in names
            if store.labels is not None
        }, task

    def _load_weights(self, module: FMambaModule, data: FMRIDataModule) -> None:
        flags = self.config.flags
        if flags["test_ckpt_path"]:
            contents = _load_module(module, flags["test_ckpt_path"], "--test_ckpt_path")
            if isinstance(module, DownstreamModule) and "target_scaling" in contents.card:
                module.target_scaling = TargetScaling(*contents.card["target_scaling"])
            self._compare_spaces(contents.card, data, "--test_ckpt_path")
            self._guard_against_leaks(contents.card, data, "--test_ckpt_path")
        elif flags["load_model_path"]:
            card = load_backbone(module.model, flags["load_model_path"])
            module.adapt()
            self._compare_spaces(card, data, "--load_model_path")
            self._guard_against_leaks(card, data, "--load_model_path")

    def _compare_spaces(self, card: dict[str, Any], data: FMRIDataModule, flag: str) -> None:
        """Positions of a model of native images mean nothing in MNI space, and the reverse.

        A trained task is refused; a backbone may be moved on purpose, so a warning tells.
        """
        spaces = card.get("data", {}).get("spaces", [])  # absent in older checkpoints
        there, here = "native" in spaces, "native" in data.card()["spaces"]
        if not spaces or there == here:
            return
        native, other = ("model", "store") if there else ("store", "model")
        message = (
            f"{flag}: the {native} is of native space and the {other} is not, so positions differ. "
            f"Use a store of the model's space."
        )
        if flag == "--test_ckpt_path":
            raise UserInputError(message)
        logging.getLogger(__name__).warning("warning: %s", message)

    def _guard_against_leaks(self, card: dict[str, Any], data: FMRIDataModule, flag: str) -> None:
        """Nobody may be tested on who was trained on.

        A supervised model is refused. Of a backbone that has seen held-out subjects without their
        labels a warning tells.
        """
        if not card:
            return
        # Where sessions or runs are split, then and now, a subject is in several parts on purpose.
        unit = card["data"]["config"].get("group_by", "subject")
        same_unit = unit == self.config.data.group_by != "subject"
        trained = set(card["data"]["training_units" if same_unit else "training_subjects"])
        keys = data.unit_keys if same_unit else data.person_keys
        held_out = keys("val") | keys("test")
        shared = [name for key, name in held_out.items() if key in trained]
        if not shared and not same_unit:
            # Under another name: the same values of a run. Older checkpoints do not tell.
            contents = set(card["data"].get("training_contents", ()))
            held = data.run_contents("val") | data.run_contents("test")
            shared = sorted(
                f"{name} (by the contents of its run)"
                for content, name in held.items()
                if content in contents
            )
        if not shared:
            return
        message = (
            f"{flag}: {len(shared)} subject(s) held out here were trained on in "
            f"'{self.config.flags[flag.removeprefix('--')]}': {names_for_message(shared)}. Use its "
            f"split (--dataset_split_num, --train_split, --val_split), or exclude them with "
            f"--bad_subj_path FILE."
        )
        if flag == "--test_ckpt_path":
            raise UserInputError(message)
        logging.getLogger(__name__).warning("warning: %s", message)

    def _opening_lines(
        self,
        module: FMambaModule,
        data: FMRIDataModule,
        steps: int,
        run_dir: Path,
        point: ResumePoint | None,
    ) -> str:
        parameters = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        some = "" if trained == parameters else f", {trained:,} of them trained"
        augment = self.config.augment
        doing = (
            "" if self.config.flags["test_only"] else f", {steps:,} steps of {self.effective_batch}"
        )
        lines = [
            f"{self.objective()}: {parameters:,} parameters{some}{doing}, on "
            f"{self.hardware.accelerator} ({self.hardware.precision})",
            *data.describe(),
            *([f"augmentation: {augment.describe()}"] if augment else []),
            f"writing to {run_dir}",
        ]
        if point is not None:
            lines.append(f"going on behind step {point.taken['global_step']:,}, from {point.path}")
        elif self.config.flags["resume_ckpt_path"]:
            lines.append("no checkpoint is there yet: starting anew")
        return "\n".join(lines)

    def _fit(
        self,
        trainer: Trainer,
        module: FMambaModule,
        data: FMRIDataModule,
        point: ResumePoint | None,
        fault_tolerance: FaultTolerance,
    ) -> dict[str, float]:
        fault_tolerance.start_clock(0.0 if point is None else point.taken.get("seconds", 0.0))
        path = None if point is None else str(point.path)
        trainer.fit(module, datamodule=data, ckpt_path=path)
        count_last_epoch(trainer)
        before = math.nan if point is None else point.taken.get("loss", math.nan)
        metrics = {
            "train/loss": float(trainer.callback_metrics.get("train/loss", before)),
            "train/steps": float(trainer.global_step),
            "train/seconds": fault_tolerance.seconds,
        }
        # The validation set has chosen the best weights; the test set is touched once, with them.
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        quiet: dict[str, Any] = {"datamodule": data, "verbose": False, "ckpt_path": best}
        if data.windows_in("val"):
            metrics |= _floats(trainer.validate(module, **quiet))
        if isinstance(module, DownstreamModule):
            metrics |= _floats(trainer.test(module, **quiet))
        return metrics

    def _test(
        self, trainer: Trainer, module: FMambaModule, data: FMRIDataModule
    ) -> dict[str, float]:
        quiet: dict[str, Any] = {"datamodule": data, "verbose": False}
        metrics = {}
        if self.config.flags["adjust_thresh"]:  # which is chosen on the validation subjects
            metrics = _floats(trainer.validate(module, **quiet))
        return metrics | _floats(trainer.test(module, **quiet))


def _load_module(module: FMambaModule, path: str, flag: str) -> CheckpointContents:
    """Load backbone and head from a checkpoint of ours."""
    contents = read_checkpoint(path, flag)
    load_strictly(module, names_in_module(contents.state_dict), path, flag=flag)
    return contents


def _floats(results: Any) -> dict[str, float]:
    return {key: float(value) for part in results for key, value in part.items()}
