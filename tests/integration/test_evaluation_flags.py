"""Flags that watch a pre-training, guard against leaks, and judge a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sklearn.metrics

from neuromamba.commands.train import main
from tests.helpers.flag_tests import (
    AGE,
    NEXT,
    predictions,
    shows,
    write_tables,
)
from tests.helpers.tiny import SUBJECTS, CommandLine, write_tiny_run


@shows("watch_task")
def test_features_are_watched(cli: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    split = "--train_split 0.3 --val_split 0.4"
    done = cli.run(f"{NEXT} {split} --watch_task sex")
    assert 0 <= done.metrics["val/knn_sex"] <= 1
    plain = cli.run(f"{NEXT} {split}")
    assert "val/knn_sex" not in plain.metrics
    shared = {k: v for k, v in done.metrics.items() if k in plain.metrics and "seconds" not in k}
    assert shared == {k: v for k, v in plain.metrics.items() if "seconds" not in k}
    assert main(cli.argv(f"{NEXT} --watch_task shoe_size")) == 2
    assert main(cli.argv("--watch_task sex")) == 2
    # A rate that makes nothing better: said in words, once.
    caplog.clear()
    cli.run(f"{NEXT} {split} --learning_rate 1e-12 --max_epochs 7 --no-use_scheduler")
    said = [
        record.getMessage() for record in caplog.records if "has stopped" in record.getMessage()
    ]
    assert len(said) <= 1


def test_a_backbone_that_has_seen_the_test_runs_under_other_names(
    cli: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    """Their contents tell."""
    path = cli.run(NEXT).folder / "checkpoints" / "last.ckpt"
    other = cli.folder / "renamed"
    (other / "hdf5").mkdir(parents=True)
    for number in range(SUBJECTS):
        write_tiny_run(other / "hdf5" / f"sub-x{number}.h5", f"sub-x{number}", number)
    (other / "metadata").mkdir()
    rows = [f"sub-x{i},{'FM'[i % 2]}" for i in range(SUBJECTS)]
    (other / "metadata" / "participants.csv").write_text("\n".join(["subject,sex", *rows]) + "\n")
    caplog.clear()
    cli.run(f"--image_path {other} --load_model_path {path}")
    said = [
        r.getMessage() for r in caplog.records if "by the contents of its run" in r.getMessage()
    ]
    assert len(said) == 1 and "held out here were trained on" in said[0]


@shows("adjust_thresh")
def test_a_threshold_is_chosen_on_the_validation_subjects(cli: CommandLine) -> None:
    """It is written down with what it does to the test subjects; nothing else changes."""
    plain, done = cli.run(), cli.run("--adjust_thresh")
    assert "test/threshold" not in plain.written
    shared = {k: v for k, v in done.written.items() if k in plain.written and "seconds" not in k}
    assert shared == {k: v for k, v in plain.written.items() if "seconds" not in k}
    rows = predictions(done, "subjects.csv")
    threshold = done.written["test/threshold"]
    for row in rows:
        assert (float(row["prob_1"]) >= threshold) == (row["decision"] == "1")

    def balanced(part: str, at: float) -> float:
        own = [r for r in rows if r["part"] == part]
        truth = [int(r["target"]) for r in own]
        told = [float(r["prob_1"]) >= at for r in own]
        return sklearn.metrics.balanced_accuracy_score(truth, told)

    scores = [float(r["prob_1"]) for r in rows]
    best = max(balanced("val", at) for at in [*scores, 0.0, 1.1])
    assert balanced("val", threshold) == pytest.approx(best)
    found = done.written["test/balanced_accuracy_adjusted"]
    assert found == pytest.approx(balanced("test", threshold), abs=1e-9)
    again = cli.run(
        f"--test_only --adjust_thresh --test_ckpt_path {done.folder}/checkpoints/best.ckpt",
    )
    assert again.written["test/threshold"] == pytest.approx(threshold)
    assert main(cli.argv(f"{AGE} --adjust_thresh")) == 2
    assert main(cli.argv("--adjust_thresh --val_split 0 --train_split 0.6")) == 2


ODD_CONFOUNDS = {
    "mixed": "'mixed' is a number for 9 subjects, but 'unknown' for one of the other 1",
    "same": "'same' has the same value for all subjects",
    "names": "regressors for 10 test subjects would explain any score; 'names' has",
    "sex": "'sex' is the target itself",
}


@pytest.mark.parametrize("column", ODD_CONFOUNDS)
def test_confounds_that_say_nothing_are_refused_before_the_training(
    cli: CommandLine, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"sub-{i + 1:02d},{'unknown' if i == 2 else i},7,n{i},{2e300 * i}" for i in range(20)]
    text = "\n".join(["subject,mixed,same,names,huge", *rows]) + "\n"
    (cli.store / "metadata" / "odd.csv").write_text(text)
    split = "--train_split 0.3 --val_split 0.2 --output_dir odd"
    assert main(cli.argv(f"--confounds {column} {split}")) == 2
    error = capsys.readouterr().err
    assert ODD_CONFOUNDS[column] in error and error.count("\n") == 1
    assert not Path("odd").exists()


@shows("confounds")
def test_confounds_are_reported(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(cli)
    done = cli.run("--confounds skew --train_split 0.3 --val_split 0.2")
    record = json.loads((done.folder / "evaluation.json").read_text())["confounds"]
    assert record["subjects"] == 10 and set(record["of_score"]) == {"skew"}
    assert record["of_target"]["skew"]["share"] > 0.2  # made from the sex
    assert record["before"]["value"] == pytest.approx(done.written["test/auroc"], abs=1e-9)
    split = "--dataset_split_num 2"
    assert main(cli.argv(f"--confounds height {split}")) == 2
    assert "--confounds" in capsys.readouterr().err.splitlines()[-1]
    assert (
        main(cli.argv(f"--confounds skew {split}")) == 2
    )  # too few test subjects, said before training
    assert "4 test subjects have values of skew" in capsys.readouterr().err.splitlines()[-1]
