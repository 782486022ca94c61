"""``neuromamba label-efficiency``: draws, paired trainings, results, going on, messages."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.commands import label_efficiency
from neuromamba.commands.label_efficiency import main
from neuromamba.evaluation.result_files import PREDICTIONS
from neuromamba.fmamba import label_efficiency as study_module
from neuromamba.fmamba.sample_rows import units_of
from tests.helpers.tiny import CommandLine

FLAGS = "--labels 1 2 --draws 2 --steps 2 --learning_rate 1e-3 --pool mean_sd --head_norm batch"


@pytest.fixture(scope="module")
def pretrained(pristine_store: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A store with a pre-training beside it, in ``run0``."""
    folder = tmp_path_factory.mktemp("few_labels")
    shutil.copytree(pristine_store, folder / "store")
    line = CommandLine(folder / "store", folder)
    line.run("--pretraining --use_autoregressive")
    return line


def command(line: CommandLine, out: Path, extra: str = FLAGS) -> list[str]:
    kept = (
        f"--dataset_name Dummy --image_path {line.store} --downstream_task sex --train_split 0.6 "
        f"--val_split 0.2 --batch_size 4 --accelerator cpu --load_model_path {line.folder}/run0"
    )
    return [*kept.split(), "--output_dir", str(out), *extra.split()]


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "trainings.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def predicted(out: Path, row: dict[str, str]) -> bytes:
    folder = out / "trainings" / f"{row['labels']}_a_class" / f"draw_{row['draw']}" / row["model"]
    return (folder / PREDICTIONS["test"]).read_bytes()


@pytest.fixture(scope="module")
def finished(pretrained: CommandLine) -> Path:
    out = pretrained.folder / "study"
    assert main(command(pretrained, out)) == 0
    return out


def test_files_and_their_numbers(finished: Path) -> None:
    found = rows(finished)
    assert [(r["model"], r["labels"], r["draw"]) for r in found] == [
        (model, labels, draw)
        for labels in "12"
        for draw in "01"
        for model in ("pretrained", "scratch")
    ]
    record = json.loads((finished / "label_efficiency.json").read_text())
    assert record["metric"] == "auroc" and record["steps"] == record["scratch_steps"] == 2
    assert [point["subjects_a_class"] for point in record["points"]] == [1, 2]
    for point in record["points"]:
        value = {
            model: np.array(
                [
                    float(r["auroc"])
                    for r in found
                    if r["model"] == model and int(r["labels"]) == point["subjects_a_class"]
                ]
            )
            for model in ("pretrained", "scratch")
        }
        value["difference"] = value["pretrained"] - value["scratch"]
        for name, values in value.items():
            assert point[name]["value"] == pytest.approx(values.mean())
            low, high = point[name]["low"], point[name]["high"]
            # Of so few test subjects an interval may have no width, and then is not defined.
            assert (low is None and high is None) or low <= point[name]["value"] <= high
    points, metric = study_module.read_points(finished)
    flat = study_module.flat_label_efficiency(points, metric)
    assert flat["labels/2/scratch/auroc"] == record["points"][1]["scratch"]["value"]
    low, found_low = record["points"][0]["difference"]["low"], flat["labels/1/difference/auroc_low"]
    assert np.isnan(found_low) if low is None else found_low == low


def test_the_same_command_gives_the_same_numbers(pretrained: CommandLine, finished: Path) -> None:
    out = pretrained.folder / "again"
    assert main(command(pretrained, out)) == 0
    assert (out / "trainings.csv").read_bytes() == (finished / "trainings.csv").read_bytes()


def test_trainings_at_the_same_time_give_the_same_results(
    pretrained: CommandLine, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes, each of which trains on one thread: the order and the rounding may differ."""
    out = pretrained.folder / "at_once"
    assert main(command(pretrained, out, f"{FLAGS} --at_once 2")) == 0
    assert rows(out) == rows(finished)
    record = json.loads((finished / "label_efficiency.json").read_text())
    assert json.loads((out / "label_efficiency.json").read_text()) == record
    for row in rows(finished):
        ours, theirs = (
            np.loadtxt(predicted(one, row).decode().splitlines()[1:], delimiter=",", usecols=(3, 4))
            for one in (out, finished)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    shown = capsys.readouterr().out
    assert all(f"[{number}/8] " in shown for number in range(1, 9))


def test_a_killed_process_is_named(
    pretrained: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system ends a process that takes too much memory."""

    def all_killed(task: Any, items: Any, workers: int, killed: Any, first: Any) -> Any:
        assert workers == 2
        return map(killed, items)

    monkeypatch.setattr(study_module, "in_processes", all_killed)
    assert main(command(pretrained, pretrained.folder / "killed", f"{FLAGS} --at_once 2")) == 2
    assert "--at_once: the process of a training (1 a class, draw 1, pretrained) was" in (
        capsys.readouterr().err
    )


def test_only_what_is_missing_is_trained(
    pretrained: CommandLine, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pretrained.folder / "continued"
    shutil.copytree(finished, out)
    whole = (out / "trainings.csv").read_bytes()
    (out / "label_efficiency.json").unlink()
    shutil.rmtree(out / "trainings" / "2_a_class" / "draw_0" / "scratch")
    calls = []
    train = study_module.train_once

    def counted(*arguments: Any) -> None:
        calls.append(tuple(arguments[-1]))
        train(*arguments)

    monkeypatch.setattr(study_module, "train_once", counted)
    assert main(command(pretrained, out)) == 0
    assert calls == [(2, 0, "scratch")]
    assert (out / "trainings.csv").read_bytes() == whole
    assert (out / "label_efficiency.json").exists()


def test_scratch_is_not_pretrained(
    pretrained: CommandLine, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both see the same subjects; more steps from scratch change that model alone."""
    out = pretrained.folder / "longer"
    assert main(command(pretrained, out, f"{FLAGS} --scratch_steps 3")) == 0
    for ours, theirs in zip(rows(finished), rows(out), strict=True):
        same = predicted(finished, ours) == predicted(out, theirs)
        assert same == (ours["model"] == "pretrained"), ours
    shown = capsys.readouterr().out
    assert "8 trainings, 0 of them done; each is tested on 4 subjects" in shown
    assert "labels a class" in shown and "means over 2 draws of labelled subjects" in shown


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--labels 9", "--labels: got 9 of each class, but the training subjects have class 0: "),
        ("--labels 0", "--labels: got 0, expected 1 or more"),
        ("--at_once 0", "--at_once: got 0, expected 1 or more"),
        ("--draws 0", "--draws: got 0, expected 1 or more"),
        ("--downstream_task age", "--downstream_task: age is a regression"),
        ("--confounds age", "--confounds: not used by label-efficiency"),
        ("--max_epochs 3", "--max_epochs"),
        ("--embed_dim 32", "--embed_dim: got 32, but"),
    ],
)
def test_what_cannot_be_done_is_told(
    pretrained: CommandLine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: str,
    said: str,
) -> None:
    assert main(command(pretrained, tmp_path / "out", extra)) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "trainings.csv").exists()


def test_results_of_other_settings_are_not_mixed(
    pretrained: CommandLine, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "trainings.csv").read_bytes()
    assert main(command(pretrained, finished, f"{FLAGS} --steps 3")) == 2
    error = capsys.readouterr().err
    assert "holds results of other settings (scratch_steps, steps)" in error
    assert (finished / "trainings.csv").read_bytes() == before


def test_needs_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert label_efficiency.main(["--output_dir", "x"]) == 2
    assert "--load_model_path: not given" in capsys.readouterr().err


def test_members_of_a_family_are_resampled_together(cli: CommandLine) -> None:
    """What the intervals draw are families where the tables have them, else persons."""
    alone = units_of(cli.data("--downstream_task sex"), "test")
    assert len(set(alone.values())) == len(alone) == 4
    table = cli.store / "metadata" / "participants.csv"
    head, *rows = table.read_text().splitlines()
    families = [f"{row},{i // 4}" for i, row in enumerate(rows)]
    table.write_text("\n".join([f"{head},family", *families]) + "\n")
    data = cli.data("--downstream_task sex --family_column family")
    units = units_of(data, "test")
    expected = {row.split(",")[0]: f"0/family {i // 4}" for i, row in enumerate(rows)}
    assert units == {name: expected[name] for name in data.sample_names("test").values()}
    assert len(set(units.values())) < len(units)
