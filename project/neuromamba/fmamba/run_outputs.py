"""What a run writes besides checkpoints and curves; the file formats other tools read.

- ``config.yaml``: every flag, resolved; can be given back to ``--config``.
- ``metrics.json``: flat ``{"test/auroc": ...}``; values that are not defined are null.
- ``predictions.csv``: ``subject,window,target,prob_0,prob_1,...``, or ``...,prediction`` for a
  regression, one line per test window; ``validation_predictions.csv`` the same of the validation
  windows, with the weights that were tested.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path

import yaml
from pytorch_lightning.utilities import rank_zero_only

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError, see
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation import result_files
from neuromamba.evaluation.result_files import PREDICTIONS, Predictions
from neuromamba.evaluation.subject_metrics import WindowScores
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.run_config import RunConfig, unused_flags
from neuromamba.fmamba.trainer_flags import SYNONYMS
from neuromamba.training.job import run_tag
from neuromamba.training.launch import agreed

# Flags that say what to do with a run rather than what the run is.
_NOT_RECORDED = {"config", "dry_run", "output_dir"}


def run_name(config: RunConfig) -> str:
    """``--process_code``, else objective or task, and the batch job or the time; for all ranks.

    A job that is requeued finds its folder again. Several runs of a job are numbered, unless
    they are to continue the last.
    """
    if config.flags["process_code"]:
        return config.flags["process_code"]

    def choose() -> str:
        what = config.pretrain.objective if config.pretrain else config.flags["downstream_task"]
        name = f"{what}_{run_tag()}"
        if config.flags["output_dir"] or config.flags["resume_ckpt_path"] == "last":
            return name
        others = (f"{name}-{number}" for number in count(2))
        return next(n for n in chain([name], others) if not _holds_a_run(_folder(config, n)))

    return choose() if config.flags["output_dir"] else agreed("run_name", choose)


def _folder(config: RunConfig, name: str) -> Path:
    return Path("output") / config.flags["project_name"] / name


def _holds_a_run(path: Path) -> bool:
    return (path / "config.yaml").exists()


def choose_run_dir(config: RunConfig, name: str) -> Path:
    """The run folder, not yet made.

    Raises:
        UserInputError: it holds another run, and this one does not continue it.
    """
    chosen = config.flags["output_dir"]
    path = Path(chosen) if chosen else _folder(config, name)
    resumed = config.flags["resume_ckpt_path"]
    # The other ranks of a run may come when the first has begun to write.
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if first and _holds_a_run(path) and not resumed:
        raise UserInputError(
            f"{folder_flag(config)}: '{path}' already holds a run. Choose another folder, or "
            f"remove that one{_going_on(config, path)}. {see('holds-a-run')}"
        )
    return path


def _going_on(config: RunConfig, path: Path) -> str:
    """The third remedy for a folder that holds a run; a test has none."""
    if config.flags["test_only"]:
        return ""
    last = path / "checkpoints" / "last.ckpt"
    if last.exists():
        return f", or continue it with --resume_ckpt_path {last}"
    if any(last.parent.glob("*.ckpt*")):
        return ", or continue it with --resume_ckpt_path last"
    return ", or, since it has no checkpoint yet, start it anew with --resume_ckpt_path last"


def make_folders(config: RunConfig, run_dir: Path) -> None:
    """Create the run folder, and the one of ``--embedding_save_dir``.

    Raises:
        UserInputError: one of them cannot be written.
    """
    if config.flags["embedding_save_dir"]:
        _make_folder(Path(config.flags["embedding_save_dir"]), "--embedding_save_dir")
    _make_folder(run_dir, folder_flag(config))


def _make_folder(path: Path, flag: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserInputError(
            f"{flag}: cannot write to '{path}' ({error.strerror}). Choose a folder you can write."
        ) from None


def folder_flag(config: RunConfig) -> str:
    """The flag that chooses the run folder, for messages."""
    return "--output_dir" if config.flags["output_dir"] else "--project_name"


def write_config(config: RunConfig, path: Path) -> None:
    """Write ``config.yaml``."""
    recorded = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.flags.items()
        if key not in _NOT_RECORDED | _unused(config) and value is not None and value != []
    }
    recorded["eval_batch_size"] = config.data.eval_batch_size
    if config.model.d_state:  # derived; SwiFT has none
        recorded |= {"d_state": config.model.d_state, "headdim": config.model.headdim}
    write_text_atomically(path, yaml.safe_dump(recorded, sort_keys=True))


def _unused(config: RunConfig) -> set[str]:
    """Flags that do not apply to this run: given back with the others, they would be refused."""
    unused = set(unused_flags(config.flags))
    unused |= {ours for theirs, ours in SYNONYMS.items() if theirs in config.trainer}
    if config.pretrain is not None:
        unused |= {"downstream_task", "downstream_task_type", "clf_head_version"}
    return unused


def write_all_predictions(module: DownstreamModule, data: RunData, run_dir: Path) -> None:
    """Write the predictions of the parts that were evaluated with the final weights."""
    for part, seen in module.seen.items():
        write_predictions(
            seen,
            data.sample_names(part),
            module.task.task_type == "classification",
            run_dir / PREDICTIONS[part],
        )


def write_predictions(
    scores: WindowScores, names: Mapping[int, str], classification: bool, path: Path
) -> None:
    """Write a file of predictions, ordered by subject and window.

    Args:
        scores: of every window of a part.
        names: subject key -> name.
        classification: whether targets are classes and scores their probabilities.
        path: the file.
    """
    subjects, windows = [names[int(key)] for key in scores.subject], scores.window.tolist()
    order = sorted(range(len(windows)), key=lambda i: (subjects[i], windows[i]))
    target = scores.target.numpy()[order]
    found = Predictions(
        [subjects[i] for i in order],
        [windows[i] for i in order],
        target.astype(int) if classification else target.astype(float),
        scores.score.double().numpy()[order],
    )
    result_files.write_predictions(found, path)
