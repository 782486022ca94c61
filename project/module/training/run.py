"""One run: pre-train, fine-tune or test, and write its results."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from project.module.config import UserInputError
from project.module.models.checkpoint_io import (
    CHECKPOINT_KEY,
    CheckpointContents,
    load_backbone,
    load_strictly,
    names_in_module,
    read_checkpoint,
    read_training_state,
)
from project.module.models.ssd import select_backend
from project.module.pl_classifier import (
    UNSCALED,
    DownstreamModule,
    FMambaModule,
    PretrainModule,
    TargetScaling,
)
from project.module.training import launch, outputs
from project.module.training.allocator import choose_allocator
from project.module.training.run_config import RunConfig
from project.module.training.same_strategy import check_same_strategy
from project.module.training.strategies import Hardware, resolve_hardware
from project.module.training.trainer import (
    accumulation,
    build_trainer,
    check_limits,
    inside_epoch,
    loader_states,
    total_steps,
)
from project.module.utils.data_module import DATASETS, FMRIDataModule
from project.module.utils.data_preprocess_and_load.labels import target_of
from project.module.utils.data_preprocess_and_load.splits import names_for_message
from project.module.utils.seed_creation import seed_run

PAPER_EFFECTIVE_BATCH = 1152  # Appendix B
DUMMY_FRAMES = 40
_LATER_FACTS = ("images of hash", "targets of hash")  # not in the first version's checkpoints
# Settings of the data that change how fast a run is, not what it computes.
LOADING = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "window_cache")


class Run:
    """A run with its configuration checked and its hardware resolved.

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
        """
        config, flags = self.config, self.config.flags
        self.hardware.require()
        launch.prepare(self.hardware.devices, self.hardware.num_nodes)
        select_backend(flags["ssd_backend"], torch.device(self.hardware.accelerator))
        seed_run(flags["seed"])
        data = FMRIDataModule(self.data_config(make_dummy=True), config.downstream)
        if config.downstream is not None and not data.windows_in("test"):
            raise UserInputError(
                "--train_split/--val_split: no test subjects are left to evaluate on; lower them."
            )
        batches = {part: data.batches_in(part, self.hardware.ranks) for part in data.parts}
        check_limits(config, batches)
        data.cache_bytes(self.hardware.devices)
        steps = total_steps(config, batches["train"])
        module = self.build_module(data, steps)
        parameters = sum(p.numel() for p in module.parameters())  # ZeRO-3 will cut them up
        self._load_weights(module, data)
        name = outputs.run_name(config)
        run_dir = outputs.choose_run_dir(config, name)
        trainer = build_trainer(config, self.hardware, run_dir, name, data.windows_in("val") > 0)
        outputs.make_folders(config, run_dir)
        if trainer.is_global_zero:
            outputs.write_config(config, run_dir / "config.yaml")
            data.write_splits(run_dir / "splits")
            print(self._opening_lines(module, data, steps, run_dir), flush=True)
        metrics = (
            self._test(trainer, module, data)
            if flags["test_only"]
            else self._fit(trainer, module, data)
        )
        metrics |= {
            "model/parameters": float(parameters),
            **{f"data/subjects_{p}": float(sum(map(len, n))) for p, n in data.subjects.items()},
            **{f"data/windows_{p}": float(data.windows_in(p)) for p in data.parts},
        }
        if trainer.is_global_zero:
            if isinstance(module, DownstreamModule) and module.test_windows is not None:
                outputs.write_predictions(
                    module.test_windows,
                    data.unit_names("test"),
                    module.task.task_type == "classification",
                    run_dir / "predictions.csv",
                )
            outputs.write_metrics(metrics, run_dir / "metrics.json")
            shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}
            print("".join(f"{k:<24}{v:.4f}\n" for k, v in sorted(shown.items())), end="")
            print(f"results in {run_dir}", flush=True)
        return metrics

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
            from project.module.utils.data_preprocess_and_load.synthetic import ensure_dummy_store

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
            )
        assert config.downstream is not None and config.head is not None
        scaling, weights = UNSCALED, None
        if data is not None and config.downstream.task_type == "regression":
            scaling = TargetScaling(*data.target_scaling())
        elif data is not None:
            weights = data.class_weights()
        return DownstreamModule(
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
            self._compare_spaces(card, data, "--load_model_path")
            self._guard_against_leaks(card, data, "--load_model_path")
        if flags["resume_ckpt_path"]:
            self._check_resumable(module, flags["resume_ckpt_path"])

    def _check_resumable(self, module: FMambaModule, path: str) -> None:
        """Lightning restores the training itself; here it is made sure that it can."""
        flag = "--resume_ckpt_path"
        state = read_training_state(path, flag)
        check_same_strategy(state, path, self.hardware)
        training = state.contents
        _load_module(module, path, flag)
        self._check_position(training, path)
        if self.config.trainer.get("max_steps", -1) > 0:
            raise UserInputError(
                "--max_steps: cannot be combined with --resume_ckpt_path; give --max_epochs."
            )
        before, now = _training_facts(training[CHECKPOINT_KEY]), _training_facts(module.card())
        for fact, value in now.items():
            if fact in _LATER_FACTS and fact not in before:
                continue  # an older checkpoint
            if before.get(fact) != value:
                raise UserInputError(
                    f"{flag}: '{path}' was trained with {fact} {before.get(fact)}, and this run "
                    f"has {value}. Resume with the same flags, or start anew from its weights with "
                    f"--load_model_path."
                )

    def _check_position(self, training: Mapping[str, Any], path: str) -> None:
        """Inside an epoch the next batch must be known, and no gradient half summed up."""
        if not inside_epoch(training):
            return
        loaders = loader_states(training)
        why = ""
        if not loaders:
            why = "but does not say which of its batches were used"
        elif self.hardware.ranks > 1:
            why = "which several devices cannot go on with yet (open issue 'Scale')"
        elif self.config.trainer.get("overfit_batches"):
            why = "which --overfit_batches cannot go on with"
        elif loaders[0]["batches"] % accumulation(self.config):
            why = f"and between the {accumulation(self.config)} batches of a step"
        if why:
            raise UserInputError(
                f"--resume_ckpt_path: '{path}' was taken inside an epoch, {why}. Resume from "
                f"checkpoints/last.ckpt."
            )

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
        self, module: FMambaModule, data: FMRIDataModule, steps: int, run_dir: Path
    ) -> str:
        parameters = sum(p.numel() for p in module.parameters())
        augment = self.config.augment
        doing = (
            "" if self.config.flags["test_only"] else f", {steps:,} steps of {self.effective_batch}"
        )
        lines = [
            f"{self.objective()}: {parameters:,} parameters{doing}, on "
            f"{self.hardware.accelerator} ({self.hardware.precision})",
            *data.describe(),
            *([f"augmentation: {augment.describe()}"] if augment else []),
            f"writing to {run_dir}",
        ]
        return "\n".join(lines)

    def _fit(
        self, trainer: Trainer, module: FMambaModule, data: FMRIDataModule
    ) -> dict[str, float]:
        start = time.monotonic()
        try:
            trainer.fit(module, datamodule=data, ckpt_path=self.config.flags["resume_ckpt_path"])
        except SystemExit:
            # Lightning turns Ctrl-C and SIGTERM into an exit, the latter without an error status.
            raise KeyboardInterrupt from None
        if math.isnan(float(trainer.callback_metrics.get("train/loss", 0.0))):
            raise UserInputError(
                f"--learning_rate: the training loss is not a number after "
                f"{trainer.global_step} steps. Lower {self.config.optim.learning_rate:g}, or add "
                f"--grad_clip 1."
            )
        metrics = {
            "train/loss": float(trainer.callback_metrics.get("train/loss", math.nan)),
            "train/steps": float(trainer.global_step),
            "train/seconds": time.monotonic() - start,
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
        return _floats(trainer.test(module, datamodule=data, verbose=False))


def _load_module(module: FMambaModule, path: str, flag: str) -> CheckpointContents:
    """Load backbone and head from a checkpoint of ours."""
    contents = read_checkpoint(path, flag)
    load_strictly(module, names_in_module(contents.state_dict), path, flag=flag)
    return contents


def _training_facts(card: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must share with the run it continues: name -> value."""
    data = dict(card["data"]["config"])
    for free in ("image_path", *LOADING):
        data.pop(free, None)  # older checkpoints lack some
    task = {k: v for k, v in card.get("downstream", {}).items() if k not in ("label_csv", "events")}
    facts = {"a split of hash": card["data"]["split_hash"]}
    for part in (data, card["model"], card["optim"]):
        facts |= {f"--{name}": value for name, value in part.items()}
    for part, values in (("pretrain", card.get("pretrain", {})), ("downstream", task)):
        facts |= {f"{part} {name}": value for name, value in values.items()}
    facts |= {f"head {name}": value for name, value in card.get("head", {}).items()}
    facts["augmentation"] = card.get("augment", "none")
    if card["optim"]["use_scheduler"]:
        facts["learning rates planned for so many steps:"] = card["total_steps"]
    for fact in _LATER_FACTS:
        if found := card["data"].get(f"{fact.split()[0]}_hash"):
            facts[fact] = found
    return facts


def _floats(results: Any) -> dict[str, float]:
    return {key: float(value) for part in results for key, value in part.items()}
