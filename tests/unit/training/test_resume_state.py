"""Who may continue a training, and what a continued one takes along."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from neuromamba.checkpoints.io import TrainingState
from neuromamba.common.errors import UserInputError
from neuromamba.training.callbacks import BestCheckpoint
from neuromamba.training.same_strategy import check_same_strategy
from neuromamba.training.strategies import Hardware


def hardware(strategy: str, ranks: int) -> Hardware:
    return Hardware("cpu", ranks, 1, strategy, "32-true", (), ranks)


@pytest.mark.parametrize(
    ("stage", "ranks", "strategy", "now"),
    [
        (0, 2, "ddp", 2),
        (0, 1, "auto", 1),
        (0, 0, "auto", 4),  # an older file does not say how many wrote it
        (1, 2, "deepspeed_stage_1", 2),
        (2, 8, "deepspeed_stage_2_offload", 8),
        (3, 1, "deepspeed_stage_3", 1),
    ],
)
def test_the_same_may_go_on(stage: int, ranks: int, strategy: str, now: int) -> None:
    check_same_strategy(TrainingState({}, stage, ranks), "last.ckpt", hardware(strategy, now))


@pytest.mark.parametrize(
    ("stage", "ranks", "strategy", "now", "words"),
    [
        (0, 2, "ddp", 4, "2 processes with a strategy other than DeepSpeed's, and this run is 4"),
        (0, 2, "deepspeed_stage_1", 2, "2 processes with --strategy deepspeed_stage_1;"),
        (1, 2, "deepspeed_stage_1", 1, "2 processes with --strategy deepspeed_stage_1, and this"),
        (1, 2, "deepspeed_stage_2", 2, "run is 2 processes with --strategy deepspeed_stage_2;"),
        (3, 2, "ddp", 2, "was saved by 2 processes with --strategy deepspeed_stage_3, and this"),
        (2, 1, "auto", 1, "run is 1 process with --strategy auto;"),
    ],
)
def test_others_may_not(stage: int, ranks: int, strategy: str, now: int, words: str) -> None:
    with pytest.raises(UserInputError, match=re.escape(words)) as caught:
        check_same_strategy(TrainingState({}, stage, ranks), "a.ckpt", hardware(strategy, now))
    message = str(caught.value)
    assert message.startswith("--resume_ckpt_path: 'a.ckpt' was saved by ")
    assert "--load_model_path" in message and "--devices times --num_nodes" in message


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_best_checkpoint_comes_along(tmp_path: Path, kind: str) -> None:
    """A run continued in another folder has its best so far there, whole."""
    old, new = tmp_path / "old" / "best.ckpt", tmp_path / "new" / "best.ckpt"
    held = old / "checkpoint" / "states.pt" if kind == "folder" else old
    held.parent.mkdir(parents=True)
    held.write_text("weights")
    saved = BestCheckpoint(old.parent, "val/loss", "min")
    saved.best_model_path = saved.kth_best_model_path = str(old)
    saved.best_model_score = saved.kth_value = torch.tensor(0.5)
    saved.best_k_models = {str(old): torch.tensor(0.5)}
    for _ in range(2):  # also in the place of what is there
        callback = BestCheckpoint(new.parent, "val/loss", "min")
        callback.load_state_dict(saved.state_dict())
        assert callback.best_model_path == str(new)
        assert (new / held.relative_to(old)).read_text() == "weights"
        assert sorted(path.name for path in new.parent.iterdir()) == ["best.ckpt"]
    assert held.exists()
    if kind == "file":
        old.unlink()
        callback = BestCheckpoint(tmp_path / "third", "val/loss", "min")
        callback.load_state_dict(saved.state_dict())
        assert callback.best_model_path == ""


def test_a_run_without_a_best_brings_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine").write_text("data")
    monkeypatch.chdir(tmp_path / "work")
    saved = BestCheckpoint(tmp_path / "old", "val/loss", "min").state_dict()
    callback = BestCheckpoint(tmp_path / "new", "val/loss", "min")
    callback.load_state_dict(saved)
    assert callback.best_model_path == "" and not (tmp_path / "new").exists()
