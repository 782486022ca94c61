"""Targets of one's own, splits by family, site and run, windows labelled by events: as typed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.commands.train import main
from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.cohorts.split_files import read_split_txt
from neuromamba.data.store.reader import list_runs
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.data.windows.run_data import RunData
from tests.helpers.tiny import FRAMES, SUBJECTS, CommandLine, write_tiny_run

OWN = "--dataset_name Own --label_csv own.csv --target_column group"


def table(cli: CommandLine, text: str, name: str = "own.csv") -> Path:
    (cli.folder / name).write_text(text)
    return cli.folder / name


def own_labels(
    cli: CommandLine, value: Any = lambda i: "abc"[i % 3], column: str = "group"
) -> None:
    rows = [f"sub-{i + 1:02d},{value(i)}" for i in range(SUBJECTS)]
    table(cli, "\n".join([f"participant_id,{column}", *rows]) + "\n")


def predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as stream:
        return list(csv.DictReader(stream))


# --------------------------------------------------------------------------- a table of one's own


def test_classes_of_a_table(cli: CommandLine) -> None:
    """Three classes without touching code: trained, tested, tested again from the checkpoint."""
    own_labels(cli)
    done = cli.run(OWN)
    rows = predictions(done.folder)
    assert {"prob_0", "prob_1", "prob_2"} <= set(rows[0])
    for row in rows:
        assert int(row["target"]) == (int(row["subject"].removeprefix("sub-")) - 1) % 3
    metadata = done.checkpoint()["neuromamba"]["downstream"]
    assert metadata["task"] == "group" and metadata["target_classes"] == ["a", "b", "c"]
    test = f"--test_only --test_ckpt_path {done.folder}/checkpoints/best.ckpt"
    argv = ["--accelerator", "cpu", "--devices", "1", "--output_dir", "again", *test.split()]
    assert main(argv) == 0
    assert predictions(cli.folder / "again") == rows
    config = (done.folder / "config.yaml").read_text()
    assert "target_column: group" in config
    again = ["--config", str(done.folder / "config.yaml"), "--output_dir", "third"]
    assert main(again) == 0
    assert predictions(cli.folder / "third") == rows


def test_chosen_classes_leave_the_others_out(cli: CommandLine) -> None:
    own_labels(cli)
    config = cli.planned(OWN).config
    RunData(config.data, config.downstream, write_split=True)
    data = cli.data(f"{OWN} --target_classes c a")
    kept = {name for part in data.subjects.values() for names in part for name in names}
    assert kept == {f"sub-{i + 1:02d}" for i in range(SUBJECTS) if i % 3 != 1}
    labels = data.stores[0].labels
    assert labels is not None
    assert {labels[name] for name in kept if (int(name[4:]) - 1) % 3 == 2} == {0}
    # Nobody changes the part by it: the store has a split.
    whole = cli.data(OWN).subjects
    for part, (names,) in data.subjects.items():
        assert set(names) == set(whole[part][0]) & kept


def test_numbers_of_a_table(cli: CommandLine) -> None:
    own_labels(cli, lambda i: 1.5 * i, "score")
    wish = OWN.replace("group", "score")
    with pytest.raises(UserInputError, match=r"--downstream_task_type: .* say classification or"):
        cli.planned(wish)
    done = cli.run(f"{wish} --downstream_task_type regression")
    assert "test/pearson_r" in done.metrics
    row = predictions(done.folder)[0]
    assert float(row["target"]) == 1.5 * (int(row["subject"][4:]) - 1)
    own_labels(cli, lambda i: i % 2, "score")
    data = cli.data(f"{wish} --downstream_task_type classification")
    assert data.task is not None and data.task.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("text", "extra", "message"),
    [
        ("participant_id,grp\nsub-01,a\n", "", "--target_column: .*'group'.*Did you mean 'grp'"),
        ("who,group\nsub-01,a\nsub-02,b\n", "",
         r"--subject_column: not given.*participant_id.*\); it has who, group\. Name that"),
        ("participant_id,group\nsub-01,a\nsub-02,b\n", "", "no label for 18 of 20"),
        ("participant_id,group\nsub-01,a\nsub-01,b\n", "", "conflicting values"),
        ("participant_id,group\nsub-01,a\nsub-02,a\n", "", "two or more classes, found: a"),
        ("participant_id,group\nsub-01,\n", "", "column 'group' holds no value"),
        ("", "", "own.csv: the file is empty"),
        ("participant_id,group,group\n1,a,b\n", "", "more than one column is called group"),
        ("participant_id,group\nsub-01,a,b\n", "", "line 2: found 3 fields, expected 2"),
        ("participant_id,group\nsub-01,a\nsub-02,b\n", "--target_classes a x", "'x'"),
        ("participant_id,group\nsub-01,a\nsub-02,b\n", "--target_classes a", "two or more"),
        ("participant_id,group\nsub-01,a\nsub-02,b\n", "--downstream_task sex", "only used with"),
        ("participant_id,group\nsub-01,a\nsub-02,b\n", "--events e.tsv", "give one of them"),
        (
            "participant_id,group\nsub-01,a\nsub-02,b\n",
            "--downstream_task_type regression",
            r"holds text \('a', 'b'\)",
        ),
        (
            "participant_id;group\nsub-01;20,5\nsub-02;-21,25\n",
            "--downstream_task_type regression",
            r"holds text \('-21,25', '20,5'\).* Write decimals with a point",
        ),
        ("participant_id,group\nThe NDAR GUID,Sex at birth\n01,F\n02,M\n", "",
         r"second line describes the columns \(The NDAR GUID, Sex at birth\).* Remove that line"),
        ("participant_id,group\n50.002,a\n50.003,b\n", "",
         r"the table writes them as 50.002, 50.003\). Write them there as in the store"),
        (
            "participant_id,group\n" + "".join(f"sub-{i},v{i}\n" for i in range(60)),
            "",
            "60 different values, more than",
        ),
    ],
)  # fmt: skip
def test_bad_tables(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], text: str, extra: str, message: str
) -> None:
    table(cli, text)
    table(cli, "onset\tduration\ttrial_type\n0\t8\ta\n8\t8\tb\n", "e.tsv")
    argv = cli.argv(f"{OWN} {extra}")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(UserInputError, match=message):
        raise UserInputError(error)


@pytest.mark.parametrize("mark", ["﻿", ""])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_spreadsheets(cli: CommandLine, mark: str, delimiter: str) -> None:
    """Byte order mark, delimiters, Windows line ends, blank lines, quotes, blanks, 1.0 for 1."""
    lines = [f'participant_id{delimiter} group {delimiter}"remark, long"', ""]
    for i in range(SUBJECTS):
        lines.append(f"sub-{i + 1:02d}{delimiter} {i % 2}.0 {delimiter}")
    (cli.folder / "own.csv").write_bytes((mark + "\r\n".join(lines)).encode())
    data = cli.data(f"{OWN} --downstream_task_type classification")
    labels = data.stores[0].labels
    assert labels is not None and labels["sub-02"] == 1 and set(labels.values()) == {0, 1}


def test_two_spellings_of_a_class_do_not_conflict(cli: CommandLine) -> None:
    path = cli.store / "metadata" / "participants.csv"
    path.write_text(path.read_text() + "sub-01,female,,,\n")
    assert cli.data().stores[0].labels
    path.write_text(path.read_text() + "sub-01,male,,,\n")
    with pytest.raises(UserInputError, match="subject 'sub-01' has conflicting values"):
        cli.data()


# ------------------------------------------------------------------------------ splits and samples


def columns(cli: CommandLine, **of: Any) -> None:
    rows = [",".join([f"sub-{i + 1:02d}", *(str(v(i)) for v in of.values())]) for i in range(20)]
    text = "\n".join([",".join(["subject", *of]), *rows]) + "\n"
    (cli.store / "metadata" / "more.csv").write_text(text)


def test_families_and_sites(cli: CommandLine) -> None:
    columns(cli, family=lambda i: i // 2, site=lambda i: "xy"[i % 2])
    data = cli.data("--family_column family")
    parts = [{(int(n[4:]) - 1) // 2 for n in names[0]} for names in data.subjects.values()]
    assert sum(map(len, parts)) == 10 and len(set.union(*parts)) == 10
    done = cli.run("--stratify_by site --max_steps 1")
    record = json.loads(next((done.folder / "splits").rglob("*.json")).read_text())
    assert record["stratify_by"] == ["site"] and record["unit"] == "subject"
    for part, n in (("train", 6), ("val", 2), ("test", 2)):
        odd = sum(int(name[4:]) % 2 for name in record[part])
        assert odd == n and len(record[part]) == 2 * n
    with pytest.raises(UserInputError, match=r"--stratify_by: .*drawn with"):
        cli.data("--stratify_by none")
    with pytest.raises(UserInputError, match=r"--family_column: no table .* column 'fam'"):
        cli.data("--family_column fam")


def test_age_is_put_into_quarters(cli: CommandLine) -> None:
    data = cli.data("--stratify_by age")
    assert set(data.stores[0].grouping.stratum.values()) == {f"quarter {i}" for i in (1, 2, 3, 4)}


def test_a_site_is_wanted_of_abide(cli: CommandLine) -> None:
    assert DATASETS["ABIDE"].stratify_by == ("SITE_ID",)
    extra = "--pretraining --use_autoregressive --dataset_name ABIDE"
    with pytest.raises(UserInputError, match=r"stratification of ABIDE off.*SITE_ID"):
        cli.data(extra)
    cli.data(f"{extra} --stratify_by none")
    rows = [f"{i + 1},{'KKI' if i % 2 else 'NYU'}" for i in range(SUBJECTS)]
    table = "\n".join(["SUB_ID,SITE_ID", *rows]) + "\n"
    (cli.store / "metadata" / "phenotypic.csv").write_text(table)
    assert set(cli.data(extra).stores[0].grouping.stratum.values()) == {"KKI", "NYU"}


def test_matched_pairs(cli: CommandLine) -> None:
    columns(cli, skew=lambda i: i + 9 * (i % 2))
    data = cli.data("--match_on skew --match_caliper 1")
    for part in data.subjects:
        targets = data.targets_of_samples(part)
        assert sum(targets) * 2 == len(targets)
    with pytest.raises(UserInputError, match="--match_on: pairs two classes"):
        cli.data("--match_on skew --downstream_task age")


def test_weighted_data_sets_and_balanced_classes(cli: CommandLine) -> None:
    other = cli.folder / "other"
    (other / "hdf5").mkdir(parents=True)
    for i in range(10):
        write_tiny_run(other / "hdf5" / f"1{i:02d}.h5", f"1{i:02d}", i)
    extra = (
        "--pretraining --use_autoregressive --dataset_name Dummy S1200 "
        f"--image_path {cli.store} {other} --dataset_weights 1 2"
    )
    data = cli.data(extra)
    sizes = [len(part) for part in data.parts["train"].datasets]  # type: ignore[union-attr]
    drawn = np.array(list(FMRIDataModule(data).train_dataloader().sampler))
    assert len(drawn) == sum(sizes) == 54
    assert (drawn < sizes[0]).sum() == 18 and (drawn >= sizes[0]).sum() == 36
    own_labels(cli, lambda i: "abbb"[i % 4])
    data = cli.data(f"{OWN} --balanced_sampling")
    windows = data.parts["train"].datasets[0].windows  # type: ignore[union-attr]
    drawn_targets = [windows[i].target for i in FMRIDataModule(data).train_dataloader().sampler]
    assert abs(drawn_targets.count(0) - drawn_targets.count(1)) <= 1
    weights = cli.data(f"{OWN} --class_weights balanced").class_weights()
    assert weights is not None
    counts = np.bincount([window.target for window in windows])
    assert np.average(weights, weights=counts) == pytest.approx(1.0)
    assert weights[0] / weights[1] == pytest.approx(counts[1] / counts[0])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--group_by family", "--group_by: unknown name 'family'"),
        ("--group_by run --family_column f", "cannot be combined with --group_by run"),
        ("--dataset_weights 1", "--dataset_weights: only used with several data sets"),
        ("--balanced_sampling --downstream_task age", "only used with a classification"),
        ("--class_weights balanced --downstream_task age", "only used with a classification"),
        ("--match_caliper 1", "--match_caliper: only used with --match_on"),
        ("--match_on age --match_caliper 0", "--match_caliper: got 0"),
        ("--target_column sex", "--target_column: only used with --label_csv or --events"),
        ("--event_delay 5", "--event_delay: only used with --events"),
        ("--label_csv x.csv", "--label_csv: needs --target_column"),
        ("--label_csv absent.csv --target_column a", "absent.csv: cannot read"),
        ("--events absent.tsv", "--events: no file or folder"),
    ],
)
def test_flags_that_do_not_fit(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    assert main(cli.argv(extra)) == 2
    assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- events


@pytest.fixture
def runs(cli: CommandLine) -> CommandLine:
    """One subject with ten runs of native space, in place of the store."""
    for path in list_runs(cli.store):
        path.unlink()
    for i in range(10):
        path = cli.store / "hdf5" / f"sub-01_run-{i + 1}.h5"
        write_tiny_run(path, "sub-01", i, run=str(i + 1), space="native")
    lines = ["run,onset,duration,trial_type"]
    for run in range(1, 11):
        kinds = ("face", "house") if run % 2 else ("house", "face")
        lines += [f"{run},0,8,{kinds[0]}", f"{run},8,8,rest", f"{run},16,8,{kinds[1]}"]
    table(cli, "\n".join(lines) + "\n", "events.csv")
    return cli


EVENTS = (
    "--dataset_name Own --events events.csv --target_classes face house --group_by run "
    "--sequence_length 2 --img_size 12 12 12 2"
)


def test_decoding_events_within_a_subject(runs: CommandLine) -> None:
    """Runs are split, windows have the label of their event, an event is scored as one."""
    done = runs.run(EVENTS)
    split = read_split_txt(next((done.folder / "splits").rglob("*_by_run.txt")))
    assert sorted(split.subjects) == sorted(f"sub-01_run-{i}" for i in range(1, 11))
    rows = predictions(done.folder)
    # Each test run has two events of the two classes; an event of 4 frames holds two windows.
    assert len(rows) == len(split.test) * 2 * 2
    for row in rows:
        run, number = row["subject"].split("#")
        assert run in split.test and number in ("1", "3")
        first = int(run.split("-")[-1]) % 2 == 1
        assert int(row["target"]) == (0 if (number == "1") == first else 1)
    assert {row["window"] for row in rows} == {"0", "1"}
    assert 0 <= done.metrics["test/accuracy"] <= 1
    data = runs.data(EVENTS)
    (windows,) = data.parts["test"].datasets  # type: ignore[union-attr]
    starts = {(w.sample_id.split("#")[1], w.start) for w in windows.windows}  # type: ignore[attr-defined]
    assert starts == {("1", 0), ("1", 2), ("3", 8), ("3", 10)}
    test = f"--test_only --test_ckpt_path {done.folder}/checkpoints/best.ckpt --output_dir again"
    assert main(["--accelerator", "cpu", "--devices", "1", *test.split()]) == 0
    assert predictions(runs.folder / "again") == rows
    shuffled = runs.data(f"{EVENTS} --shuffle_labels 1")
    assert sorted(shuffled.targets_of_samples("train")) == sorted(data.targets_of_samples("train"))
    assert shuffled.stores[0].events != data.stores[0].events


def test_runs_of_one_subject_leak_if_subjects_are_split(
    runs: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    """A backbone of a split by run has seen the subject, so a split by subject warns."""
    done = runs.run(EVENTS)
    for i in (2, 3, 4):
        name = f"sub-{i:02d}"
        write_tiny_run(runs.store / "hdf5" / f"{name}.h5", name, i, space="native")
    own_labels(runs, lambda i: "ab"[i % 2])
    parts = "train_subjects\nsub-02\nsub-03\nval_subjects\nsub-04\ntest_subjects\nsub-01\n"
    (runs.store / "splits" / "split_fixed_1.txt").write_text(parts)
    start = f"--img_size 12 12 12 2 --load_model_path {done.folder}/checkpoints/best.ckpt"
    runs.run(f"{OWN} {start} --max_steps 1")
    assert "1 subject(s) held out here were trained on" in caplog.text


def test_held_out_runs_of_a_known_subject_are_no_leak(
    runs: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    done = runs.run(EVENTS)
    runs.run(f"{EVENTS} --load_model_path {done.folder}/checkpoints/best.ckpt --max_steps 1")
    assert "held out here" not in caplog.text
    other = "--dataset_split_num 2 --max_steps 1"
    runs.run(f"{EVENTS} --load_model_path {done.folder}/checkpoints/best.ckpt {other}")
    assert "held out here were trained on" in caplog.text and "sub-01_run-" in caplog.text


def test_native_and_registered_runs_do_not_mix(runs: CommandLine) -> None:
    write_tiny_run(runs.store / "hdf5" / "sub-02.h5", "sub-02", 33, space="MNI152NLin6Asym")
    with pytest.raises(UserInputError, match="10 of 11 runs are in native space"):
        runs.data("--pretraining --use_autoregressive --dataset_name Own --group_by run")


def test_a_model_of_another_space(
    runs: CommandLine, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    done = runs.run(EVENTS)
    for i in range(10):
        path = runs.store / "hdf5" / f"sub-01_run-{i + 1}.h5"
        write_tiny_run(path, "sub-01", i, run=str(i + 1), space="MNI152NLin6Asym")
    checkpoint = f"{done.folder}/checkpoints/best.ckpt"
    test = f"--test_only --test_ckpt_path {checkpoint} --output_dir again"
    assert main(["--accelerator", "cpu", "--devices", "1", *test.split()]) == 2
    assert "the model is of native space and the store is not" in capsys.readouterr().err
    runs.run(f"{EVENTS} --load_model_path {checkpoint} --max_steps 1")
    assert "the model is of native space" in caplog.text


def test_a_backbone_of_another_repetition_time(
    runs: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = f"{runs.run(EVENTS).folder}/checkpoints/best.ckpt"
    for tr, warned in ((2.1, False), (2.5, True)):
        for i in range(10):
            path = runs.store / "hdf5" / f"sub-01_run-{i + 1}.h5"
            write_tiny_run(path, "sub-01", i, run=str(i + 1), space="native", tr=tr)
        caplog.clear()
        runs.run(f"{EVENTS} --load_model_path {checkpoint} --max_steps 1")
        warning = "trained with a repetition time of 2 s, and there are runs of 2.5 s"
        assert (warning in caplog.text) == warned


def test_dropped_frames_move_the_events(runs: CommandLine) -> None:
    write_tiny_run(
        runs.store / "hdf5" / "sub-01_run-1.h5",
        "sub-01",
        0,
        run="1",
        space="native",
        dropped_frames=2,
        frames=FRAMES - 2,
    )
    data = runs.data(EVENTS)
    windows = [
        w
        for part in data.parts.values()
        for s in part.datasets  # type: ignore[union-attr]
        for w in s.windows  # type: ignore[attr-defined]
        if w.sample_id.startswith("sub-01_run-1#")
    ]
    # The first event, frames 0 to 3 as scanned, keeps its last two.
    assert [(w.sample_id[-1], w.start) for w in windows] == [("1", 0), ("3", 6), ("3", 8)]


# ----------------------------------------------------------------- what a resumed run must share


def test_a_resumed_run_has_the_same_labels_and_images(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    own_labels(cli, lambda i: "ab"[i % 2])
    done = cli.run(f"{OWN} --no-use_scheduler --output_dir first")
    again = cli.argv(
        f"{OWN} --max_epochs 2 --no-use_scheduler --output_dir first "
        f"--resume_ckpt_path {done.folder}/checkpoints/last.ckpt"
    )
    own_labels(cli, lambda i: "ba"[i % 2])
    assert main(again) == 2
    assert "--resume_ckpt_path" in (error := capsys.readouterr().err) and "targets of hash" in error
    own_labels(cli, lambda i: "ab"[i % 2])
    write_tiny_run(cli.store / "hdf5" / "sub-01.h5", "sub-01", 7)
    assert main(again) == 2
    assert "images of hash" in capsys.readouterr().err


def test_a_plan_refuses_what_is_wrong_with_data_that_are_here(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(cli.argv("--family_column nope --dry_run")) == 2
    assert capsys.readouterr().err.startswith("error: --family_column: no table")
    assert main(cli.argv(f"--image_path {cli.folder / 'absent'} --dry_run")) == 0
    assert "there is no folder" in capsys.readouterr().out


def test_parts_that_matching_or_the_split_leave_without_a_class(
    cli: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    columns(cli, skew=lambda i: 100 * i)
    with caplog.at_level("WARNING"):
        cli.data("--match_on skew --match_caliper 0.25 --dataset_split_num 4")
    assert "no pair is left in" in caplog.text
    own_labels(cli, lambda i: "ab"[i < 18])  # two cannot be in three parts
    caplog.clear()
    with caplog.at_level("WARNING"):
        for number in range(6):
            cli.data(f"{OWN} --dataset_split_num {number}")
    assert "AUROC is not defined" in caplog.text
