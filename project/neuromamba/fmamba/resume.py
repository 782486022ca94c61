"""Resuming a run: find the checkpoint, and check that this run can continue it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.checkpoints.io import (
    CHECKPOINT_KEY,
    TrainingState,
    check_readable,
    load_strictly,
    names_in_module,
    read_checkpoint,
    read_training_state,
)
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.serialise import to_dict
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.steps import accumulation
from neuromamba.layers import bf16
from neuromamba.training import launch
from neuromamba.training.checkpoint_writer import PREVIOUS
from neuromamba.training.resume_state import (
    RUN_KEY,
    ended_inside_epoch,
    inside_epoch,
    loader_states,
)
from neuromamba.training.same_strategy import check_same_strategy
from neuromamba.training.strategies import Hardware

FLAG = "--resume_ckpt_path"
LAST = "last"
COMPUTED = "computed in"  # beside the settings of a checkpoint; it may change
_LATER_FACTS = ("images of hash", "targets of hash")  # not in the first version's checkpoints
# Settings of the data that change how fast a run is, not what it computes.
LOADING = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "window_cache")


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to resume from.

    Attributes:
        path: a file, or a folder written by DeepSpeed.
        training: the state of the training that it holds.
    """

    path: Path
    training: TrainingState

    @property
    def state(self) -> Mapping[str, Any]:
        """The checkpoint as Lightning stored it."""
        return self.training.contents

    @property
    def progress(self) -> dict[str, Any]:
        """Steps done, and what ``FaultTolerance`` recorded; see ``curves.kept_rows``."""
        return {"global_step": self.state.get("global_step", 0), **self.state.get(RUN_KEY, {})}


def find_resume_point(config: RunConfig, run_dir: Path) -> ResumePoint | None:
    """Find what ``--resume_ckpt_path`` names; None to start from the beginning.

    Raises:
        UserInputError: it is damaged or no checkpoint; ``last``, and all of its folder are damaged.
    """
    request = config.flags["resume_ckpt_path"]
    if not request:
        return None
    # The first rank reads all of it and chooses; others may see an older state of the folder.
    if request == LAST:
        found = launch.agreed_or_refused("resume", lambda: _newest(run_dir / "checkpoints"))
    else:
        path = find_checkpoint(request, FLAG, (f"{LAST}.ckpt",))
        found = launch.agreed_or_refused("resume", lambda: _whole(path))
    if not found:
        return None
    return ResumePoint(Path(found), _light(read_training_state(found, FLAG)))


def _whole(path: Path) -> str:
    """Return the checkpoint if it can be read."""
    check_readable(path, FLAG)
    return str(path)


def _newest(folder: Path) -> str:
    """Return the newest checkpoint that is complete; "" if there is none.

    Raises:
        UserInputError: all are damaged.
    """
    warn, refusals = logging.getLogger(__name__).warning, []
    for path in candidates(folder):
        try:
            check_readable(path, f"{FLAG} {LAST}")
            read_training_state(path, f"{FLAG} {LAST}")
        except UserInputError as error:
            refusals.append(str(error))
            continue
        for refusal in refusals:
            warn("warning: passed over: %s", refusal)
        return str(path)
    if not refusals:
        return ""
    raise UserInputError(
        f"{FLAG} {LAST}: none of {len(refusals)} checkpoint(s) in '{folder}' can be used, the "
        f"newest because of this: {refusals[0]} To start anew, remove them or choose another "
        f"folder."
    )


def _light(training: TrainingState) -> TrainingState:
    """Drop weights and optimisers from memory; Lightning reads them when it resumes."""
    heavy = ("state_dict", "optimizer_states", "module", "optimizer")
    return training._replace(
        contents={key: value for key, value in training.contents.items() if key not in heavy}
    )


def candidates(folder: Path) -> list[Path]:
    """List the checkpoints of a run, the newest first; ``last.ckpt`` first among equals."""
    found = [*folder.glob("*.ckpt"), *folder.glob(f"*.ckpt{PREVIOUS}")]
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name == "last.ckpt"), reverse=True)


def check_resumable(
    point: ResumePoint, config: RunConfig, hardware: Hardware, module: FMambaModule
) -> None:
    """Make sure that a checkpoint fits the run, before Lightning restores the training from it.

    Raises:
        UserInputError: names what is missing, or differs.
    """
    path = point.path
    check_same_strategy(point.training, str(path), hardware)
    weights = read_checkpoint(path, FLAG, as_trained=True).state_dict
    load_strictly(module, names_in_module(weights), path, flag=FLAG)
    settings = step_settings(config, hardware)
    known = point.progress.get("settings", settings)  # older checkpoints lack it
    before = known | training_facts(point.state[CHECKPOINT_KEY])
    now = settings | training_facts(module.checkpoint_metadata())
    for fact, value in now.items():
        if fact in _LATER_FACTS and fact not in before:
            continue  # an older checkpoint
        if before.get(fact) != value:
            raise UserInputError(
                f"{FLAG}: '{path}' was trained with {fact} {before.get(fact)}, and this run has "
                f"{value}. Resume with the same flags, or start anew from its weights with "
                f"--load_model_path."
            )
    _check_position(point, config, module.total_steps)


def _check_position(point: ResumePoint, config: RunConfig, steps: int) -> None:
    """Refuse a checkpoint inside an epoch if the next batch is not known, or inside a step."""
    if not inside_epoch(point.state):
        return
    loaders, why = loader_states(point.state), ""
    if ended_inside_epoch(point.state):
        if point.progress["global_step"] >= steps or point.progress.get("stopped"):
            return  # nothing is left but the evaluation
        why = "where the training had reached --max_steps"
    elif not loaders:
        why = "but does not say which of its batches were used"
    elif config.trainer.get("overfit_batches"):
        why = "which --overfit_batches cannot continue"
    elif loaders[0]["batches"] % accumulation(config):
        why = f"and between the {accumulation(config)} batches of a step"
    if why:
        raise UserInputError(
            f"{FLAG}: '{point.path}' was taken inside an epoch, {why}. Resume from a checkpoint "
            f"that was taken at the end of an epoch."
        )


def computed_in(hardware: Hardware) -> dict[str, str]:
    """Say in which precision and on what a run computes; a resumed run may do so in another."""
    device = hardware.accelerator
    processor = bf16.processor_name() if device == "cpu" else device
    return {"precision": hardware.computed, "processor": processor}


def change_of_machine(point: ResumePoint, hardware: Hardware) -> list[str]:
    """Say that the next steps are computed in another precision than those of a checkpoint.

    The flags are the same: ``--precision bf16`` depends on the processor.
    """
    before = point.progress.get("settings", {}).get(COMPUTED, {})
    now = computed_in(hardware)
    if not before or before.get("precision") == now["precision"]:
        return []
    return [
        f"the steps so far were computed in {before.get('precision')} on "
        f"{before.get('processor')}, the next in {now['precision']} on {now['processor']}: the "
        f"numbers differ from those of one machine by rounding"
    ]


def step_settings(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """Return flag -> value of settings that change the numbers of later steps.

    They are stored in every checkpoint, beside the metadata. Settings that decide when a training
    ends, what is validated, kept or skipped (``--skip_bad_batches``), and where and how fast it is
    computed are not among them.
    """
    trainer = config.trainer
    clip = trainer.get("gradient_clip_val", config.flags["grad_clip"])
    return {
        "--precision": hardware.precision,
        "--deepspeed_autocast": hardware.autocast,
        "--gradient_accumulation_steps": accumulation(config),
        "--grad_clip": clip or "none",
        "--gradient_clip_algorithm": trainer.get("gradient_clip_algorithm") or "norm",
        # As text: 1 is one batch, and 1.0 is all.
        "--limit_train_batches": str(trainer.get("limit_train_batches", 1.0)),
        "--overfit_batches": str(trainer.get("overfit_batches", 0.0)),
    }


def _complete(cls: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Add defaults of fields that an older version did not have; an empty mapping stays empty."""
    return to_dict(cls()) | dict(recorded) if recorded else {}


def training_facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> value of what a resumed run must share with the run it continues."""
    data = dict(metadata["data"]["config"])
    for free in ("image_path", *LOADING):
        data.pop(free, None)  # older checkpoints lack some
    data.setdefault("scaling_statistics", "run")  # the only one of older versions
    data.setdefault("channels", ["dynamics"])
    task = _complete(DownstreamConfig, metadata.get("downstream", {}))
    for moved in ("label_csv", "events"):
        task.pop(moved, None)
    facts = {"a split of hash": metadata["data"]["split_hash"]}
    model = _complete(ModelConfig, metadata["model"])
    for part in (data, model, _complete(OptimConfig, metadata["optim"])):
        facts |= {f"--{name}": value for name, value in part.items()}
    pretrain = _complete(PretrainConfig, metadata.get("pretrain", {}))
    for section, values in (("pretrain", pretrain), ("downstream", task)):
        facts |= {f"{section} {name}": value for name, value in values.items()}
    head = _complete(HeadConfig, metadata.get("head", {}))
    facts |= {f"head {name}": value for name, value in head.items()}
    facts["augmentation"] = metadata.get("augment", "none")
    if metadata["optim"]["use_scheduler"]:
        facts["learning rates planned for so many steps:"] = metadata["total_steps"]
    for fact in _LATER_FACTS:
        if found := metadata["data"].get(f"{fact.split()[0]}_hash"):
            facts[fact] = found
    return facts
