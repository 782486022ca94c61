"""Where a run goes on: which checkpoint, and whether this run can continue it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.module.config import UserInputError
from project.module.models.checkpoint_io import (
    CHECKPOINT_KEY,
    check_readable,
    load_strictly,
    read_checkpoint,
    read_training_state,
)
from project.module.pl_classifier import FMambaModule
from project.module.training.checkpoint_writer import PREVIOUS
from project.module.training.position import RUN_KEY, inside_epoch, loader_states
from project.module.training.run_config import RunConfig
from project.module.training.strategies import Hardware
from project.module.training.trainer import accumulation

FLAG = "--resume_ckpt_path"
LAST = "last"
_LATER_FACTS = ("images of hash", "targets of hash")  # not in the first version's checkpoints
# Settings of the data that change how fast a run is, not what it computes.
LOADING = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "window_cache")


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to go on from.

    Attributes:
        path: a file, or a folder of DeepSpeed's.
        state: what it says of the training, without weights.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def taken(self) -> dict[str, Any]:
        """Steps taken, and what ``Survival`` noted; see ``curves.kept_rows``."""
        return {"global_step": self.state.get("global_step", 0), **self.state.get(RUN_KEY, {})}


def find_resume_point(config: RunConfig, run_dir: Path) -> ResumePoint | None:
    """What ``--resume_ckpt_path`` names; None to start anew.

    Raises:
        UserInputError: it is damaged or none; ``last`` in a folder that holds damaged ones only.
    """
    request = config.flags["resume_ckpt_path"]
    if not request:
        return None
    if request != LAST:
        check_readable(request, FLAG)
        return ResumePoint(Path(request), read_training_state(request, FLAG))
    warn, refusals = logging.getLogger(__name__).warning, []
    for path in candidates(run_dir / "checkpoints"):
        try:
            check_readable(path, f"{FLAG} {LAST}")
            state = read_training_state(path, f"{FLAG} {LAST}")
        except UserInputError as error:
            refusals.append(str(error))
            continue
        for refusal in refusals:
            warn("warning: passed over: %s", refusal)
        return ResumePoint(path, state)
    if refusals:
        raise UserInputError(
            f"{FLAG} {LAST}: none of the {len(refusals)} checkpoints in '{run_dir}/checkpoints' "
            f"can be used; the newest: {refusals[0]} To start anew, remove them or choose another "
            f"folder."
        )
    return None


def candidates(folder: Path) -> list[Path]:
    """Checkpoints of a run, the newest first; of two of one moment ``last.ckpt``."""
    found = [*folder.glob("*.ckpt"), *folder.glob(f"*.ckpt{PREVIOUS}")]
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name == "last.ckpt"), reverse=True)


def check_resumable(
    point: ResumePoint, config: RunConfig, hardware: Hardware, module: FMambaModule
) -> None:
    """Lightning restores the training itself; here it is made sure that it can.

    Raises:
        UserInputError: says what is missing, or differs.
    """
    training, path = point.state, point.path
    if not {"pytorch-lightning_version", "loops", "callbacks"} <= training.keys():
        raise UserInputError(
            f"{FLAG}: '{path}' holds weights alone, not the state of a training; start from them "
            f"with --load_model_path."
        )
    _check_strategy(point, hardware)
    if path.is_file():
        contents = read_checkpoint(path, FLAG)
        state = {
            (key if key.startswith("head.") else f"model.{key}"): value
            for key, value in contents.state_dict.items()
        }
        load_strictly(module, state, path, flag=FLAG)
    _check_position(point, config, hardware)
    if config.trainer.get("max_steps", -1) > 0:
        raise UserInputError(f"--max_steps: cannot be combined with {FLAG}; give --max_epochs.")
    before, now = training_facts(training[CHECKPOINT_KEY]), training_facts(module.card())
    for fact, value in now.items():
        if fact in _LATER_FACTS and fact not in before:
            continue  # an older checkpoint
        if before.get(fact) != value:
            raise UserInputError(
                f"{FLAG}: '{path}' was trained with {fact} {before.get(fact)}, and this run has "
                f"{value}. Resume with the same flags, or start anew from its weights with "
                f"--load_model_path."
            )


def _check_strategy(point: ResumePoint, hardware: Hardware) -> None:
    """DeepSpeed's shares belong to a stage and a number of ranks."""
    saved = point.state.get("ds_config", {}).get("zero_optimization", {}).get("stage", 0)
    anew = "or start anew from its weights with --load_model_path"
    if saved != hardware.zero_stage:
        there, here = (f"ZeRO stage {s}" if s else "no ZeRO" for s in (saved, hardware.zero_stage))
        strategy = f"deepspeed_stage_{saved}" if saved else "auto or ddp"
        raise UserInputError(
            f"--strategy: '{point.path}' was trained with {there}, and this run has {here}. Resume "
            f"with --strategy {strategy}, {anew}."
        )
    ranks = point.state.get("dp_world_size", hardware.ranks)
    if saved and ranks != hardware.ranks:
        raise UserInputError(
            f"--devices/--num_nodes: '{point.path}' is in shares of {ranks} ranks, and this run "
            f"has {hardware.ranks}. Resume with {ranks}, {anew}."
        )


def _check_position(point: ResumePoint, config: RunConfig, hardware: Hardware) -> None:
    """Inside an epoch the next batch must be known, and no gradient half summed up."""
    noted = point.state.get(RUN_KEY, {})
    inside, ranks = inside_epoch(point.state), noted.get("ranks", 1)
    if not inside and not noted.get("validation_due"):
        return
    loaders, why = loader_states(point.state), ""
    if not loaders:
        why = "but does not say which of its batches were used"
    elif ranks != hardware.ranks:
        why = f"of {ranks} ranks, and this run has {hardware.ranks} to share its batches"
    elif config.trainer.get("overfit_batches"):
        why = "which --overfit_batches cannot go on with"
    elif inside and loaders[0]["batches"] % accumulation(config):
        why = f"and between the {accumulation(config)} batches of a step"
    if why:
        raise UserInputError(
            f"{FLAG}: '{point.path}' was taken inside an epoch, {why}. Resume from a checkpoint "
            f"that was taken at the end of an epoch."
        )


def training_facts(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must share with the run it continues: name -> value."""
    data = dict(card["data"]["config"])
    for free in ("image_path", *LOADING):
        data.pop(free, None)  # older checkpoints lack some
    task = {k: v for k, v in card.get("downstream", {}).items() if k not in ("label_csv", "events")}
    facts = {"a split of hash": card["data"]["split_hash"]}
    for part in (data, card["model"], card["optim"]):
        facts |= {f"--{name}": value for name, value in part.items()}
    for section, values in (("pretrain", card.get("pretrain", {})), ("downstream", task)):
        facts |= {f"{section} {name}": value for name, value in values.items()}
    facts |= {f"head {name}": value for name, value in card.get("head", {}).items()}
    facts["augmentation"] = card.get("augment", "none")
    if card["optim"]["use_scheduler"]:
        facts["learning rates planned for so many steps:"] = card["total_steps"]
    for fact in _LATER_FACTS:
        if found := card["data"].get(f"{fact.split()[0]}_hash"):
            facts[fact] = found
    return facts
