"""A pre-training shows what its features tell of known facts: metrics, log, progress, page."""

from __future__ import annotations

import csv
import logging
import math
import shutil
from pathlib import Path

import pytest

from neuromamba.commands.report import main as report
from neuromamba.commands.train import main as train
from neuromamba.fmamba.watched_facts import watched_facts
from tests.helpers.flag_tests import NEXT, VOXELWISE
from tests.helpers.tiny import SUBJECTS, CommandLine, write_tiny_run

SPLIT = "--train_split 0.3 --val_split 0.6"  # 12 validation subjects
OTHER = "--dataset_split_num 2"  # a store keeps its splits
LONG = "--img_size 12 12 12 8 --stride_between_seq 0.25 --max_epochs 3 --learning_rate 1e-2"
ENDS = ("", "_chance", "_limit", "_mean")


def second_store(cli: CommandLine, **changes: object) -> Path:
    """A store of other subjects with a site and motion, whose runs differ as ``changes`` say."""
    other = cli.folder / "other"
    (other / "hdf5").mkdir(parents=True)
    (other / "metadata").mkdir()
    rows = ["Subject,Gender,Age_in_Yrs,Site_ID,func_mean_FD"]
    for i in range(SUBJECTS):
        subject = f"sub-9{i:02d}"
        write_tiny_run(other / "hdf5" / f"{subject}.h5", subject, i + 50, **changes)
        rows.append(f"9{i:02d},{'FM'[i % 2]},{30 + i},{['north', 'south'][i // 2 % 2]},0.{i}")
    (other / "metadata" / "people.csv").write_text("\n".join(rows) + "\n")
    return other


def test_facts_are_watched_without_flags(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "neuromamba"):
        done = cli.run(f"{NEXT} {VOXELWISE} {SPLIT} {LONG}")
    assert "sex (12 subjects), age (12 subjects)" in caplog.text
    found = done.written
    # The planted frequency is in the deviation over time.
    assert found["val/watch_sex"] > found["val/watch_sex_limit"] > found["val/watch_sex_chance"]
    assert all(math.isfinite(found[f"val/watch_age{end}"]) for end in ENDS)
    assert "val/watch_tr" not in found and "val/watch_dataset" not in found, "one of each"
    assert "val/watch_site" not in found and "val/watch_motion" not in found, "no column"
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("epoch 3 of 3"))
    shown = ("train/loss", "val/loss", "val/dynamic_skill", "val/feature_rank", "val/watch_sex")
    assert all(f"{name} " in line for name in shown)
    assert "_chance" not in line and "jump_loss" not in line and line.count("val/") < 11
    with open(done.folder / "logs" / "metrics.csv", newline="") as stream:
        assert {"val/watch_sex_chance", "val/jump_loss"} <= set(next(csv.reader(stream)))
    assert report([str(done.folder)]) == 0
    html = (done.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "What the features of validation subjects tell" in html
    assert list((done.folder / "report").rglob("watched.png"))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said early, without that on too few validation samples and the like."""
    said = [record.getMessage() for record in caplog.records]
    return [text for text in said if text.startswith("warning: epoch")]


def test_early_warnings_are_given_once(cli: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    """A rate that learns nothing: the skill of random weights stays where it is, below 0."""
    with caplog.at_level(logging.WARNING, "neuromamba"):
        cli.run(f"{NEXT} {SPLIT} --learning_rate 1e-9 --max_epochs 7")
    found = [text for text in warnings_in(caplog) if "the dynamic skill stays below 0" in text]
    assert len(found) == 1 and found[0].startswith("warning: epoch 5: ")
    assert "--input_scaling_method voxelnorm_zeroback" in found[0]


def test_a_pre_training_that_learns_is_not_warned_of(
    cli: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "neuromamba"):
        done = cli.run(f"{NEXT} {VOXELWISE} {SPLIT} {LONG} --max_epochs 8")
    assert warnings_in(caplog) == [] and done.written["val/dynamic_skill"] > 0.15


def test_few_subjects_are_not_watched(cli: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "neuromamba"):
        done = cli.run(NEXT)
    assert not any("watch_" in name for name in done.written)
    assert "too few validation subjects to be watched (10 are needed): sex (4)" in caplog.text
    asked = cli.run(f"{NEXT} --watch_task sex age")
    assert asked.written["val/watch_sex"] is None and asked.written["val/watch_age_chance"] is None
    assert 0 <= cli.run(f"{NEXT} {SPLIT} {OTHER} --watch_task sex age").written["val/knn_sex"] <= 1


def test_facts_of_several_stores(cli: CommandLine) -> None:
    """TR and data set come from the headers, sex from differently coded tables."""
    other = second_store(cli, tr=0.8)
    stores = f"--dataset_name Dummy S1200 --image_path {cli.store} {other}"
    facts = watched_facts(cli.data(f"{NEXT} {SPLIT} {stores}"))
    sizes = {name: (len(fact.values), fact.classes) for name, fact in facts.items()}
    assert sizes == {
        "dataset": (24, 2),
        "tr": (24, 2),
        "sex": (24, 2),
        "age": (24, 0),
        "intelligence": (12, 0),  # S1200's column is not there
        "diagnosis": (12, 2),
        "site": (12, 2),
        "motion": (12, 0),
    }
    assert facts["tr"].values == facts["dataset"].values or all(
        facts["tr"].values[k] == 1 - v for k, v in facts["dataset"].values.items()
    )
    done = cli.run(f"{NEXT} {SPLIT} {stores}")
    assert 0 <= done.written["val/watch_tr"] <= 1 and -1 <= done.written["val/watch_motion"] <= 1


def test_columns_of_ones_own(cli: CommandLine) -> None:
    rows = [f"sub-{i + 1:02d},{'abb'[i % 3]},{i * 1.5},{i % 2}" for i in range(SUBJECTS)]
    table = "\n".join(["subject,group,score,hand", *rows]) + "\n"
    (cli.store / "metadata" / "more.csv").write_text(table)
    data = cli.data(f"{NEXT} {SPLIT}")
    facts = watched_facts(data, ("group", "score", "hand", "tr"))
    assert {name: fact.classes for name, fact in facts.items()} == {
        "group": 2,
        "score": 0,
        "hand": 2,  # few different numbers are classes
        "tr": 1,  # the same for all, so its metrics are not defined
    }
    assert all(fact.named for fact in facts.values())


def test_a_name_that_is_not_there(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train(cli.argv(f"{NEXT} {SPLIT} --watch_task site")) == 2
    said = capsys.readouterr().err
    assert "--watch_task: 'site' is not known" in said and "participants.csv (subject, sex" in said
    shutil.rmtree(cli.store / "metadata")
    assert not any("watch_" in name for name in cli.run(f"{NEXT} {SPLIT}").written)
