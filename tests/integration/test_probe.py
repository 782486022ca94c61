"""neuromamba probe on a tiny pre-training: rows, page, flags, and a user's mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from neuromamba.commands.export import main as export
from neuromamba.commands.probe import main, run
from neuromamba.evaluation.probe_rows import ROW_KEYS, ProbeRow, flat_probes
from neuromamba.fmamba.probe_flags import parse_probe, probe_request
from neuromamba.fmamba.probing import probe
from tests.helpers.flag_tests import NEXT, OWN, write_tables
from tests.helpers.tiny import CommandLine, Finished

QUICK = "--pools mean --blocks 0 --labels 2 --draws 2"


def rows_of(done: Finished, extra: str = QUICK) -> list[dict[str, Any]]:
    """What ``--json`` holds."""
    path = done.folder.parent / "probe.json"
    path.unlink(missing_ok=True)
    run([str(done.folder), "--json", str(path), *extra.split()])
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def kinds(rows: list[dict[str, Any]], *names: str) -> set[tuple[Any, ...]]:
    return {tuple(row[name] for name in names) for row in rows}


def refused(done: Finished | str, extra: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake gets."""
    place = done if isinstance(done, str) else str(done.folder)
    assert main([place, *extra.split()]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_rows_and_page_of_a_pre_training(cli: CommandLine) -> None:
    done = cli.run(f"{NEXT} --depth 2")
    rows = rows_of(done, "--draws 2 --labels 4 2 64 --pools mean mean_sd")
    assert all(tuple(row) == ROW_KEYS for row in rows)
    both = {"linear", "knn"}
    layers, raw = {"embedding", "block 1", "features"}, {
        "lag1_autocorrelation",
        "temporal_sd",
        "fc",
        "mean_image",
    }  # fmt: skip
    everybody = [row for row in rows if row["subjects_a_class"] is None]
    assert kinds(everybody, "layer", "pool", "model", "probe") == {
        (layer, pool, model, probe)
        for layer in layers
        for pool in ("mean", "mean_sd")
        for model in ("pretrained", "untrained")
        for probe in both
    } | {("raw", pool, "raw", probe) for pool in raw for probe in both}
    assert kinds(everybody, "metric", "n_train", "n_test", "draws") == {("auroc", 16, 4, 1)}
    few = [row for row in rows if row["subjects_a_class"] is not None]
    assert kinds(few, "model", "layer", "pool") == {
        *((m, "features", p) for m in ("pretrained", "untrained") for p in ("mean", "mean_sd")),
        ("raw", "raw", "fc"),
        ("raw", "raw", "temporal_sd"),
        ("raw", "raw", "mean_image"),
    }  # fmt: skip
    assert kinds(few, "subjects_a_class", "n_train", "draws") == {(2, 4, 2), (4, 8, 2)}
    assert all(0 <= row["value"] <= 1 for row in rows)

    html = (done.folder / "probe.html").read_text(encoding="utf-8")
    text = re.sub(r"base64,[^\"]+", "", html)
    assert re.findall(r"https?://|<link|@import|url\(|src=\"(?!data:)", text) == []
    assert text.index("<img") < text.index("<table")  # the curve is first
    headings = re.findall(r"<h2>([^<]+)", text)
    assert headings[0] == "AUROC over the number of labelled subjects"
    assert headings.index("Layers and pools in numbers") < headings.index("Raw signal")
    assert "64 labelled subjects a class are left out" in text
    assert "Fitted on 16 subjects" in text and "lag-1 autocorrelation" in text


def test_places_are_probed_with_all_labels(pretrained: Finished) -> None:
    """They are too wide for the curve, which then has the raw signal only."""
    rows = rows_of(pretrained, "--pools places --blocks 0 --labels 2 --draws 2")
    backbones = [row for row in rows if row["model"] != "raw"]
    assert kinds(backbones, "layer", "pool", "model", "subjects_a_class") == {
        (layer, "places", model, None)
        for layer in ("embedding", "features")
        for model in ("pretrained", "untrained")
    }
    assert kinds(rows, "model", "pool", "subjects_a_class") >= {("raw", "fc", 2)}
    page = (pretrained.folder / "probe.html").read_text(encoding="utf-8")
    assert re.search(r">\s*places\s*<", page)


def test_the_checkpoint_is_what_is_probed_and_stays_as_it_was(cli: CommandLine) -> None:
    one = cli.run(f"{NEXT} --seed 3")
    two = cli.run(f"{NEXT} --seed 3 --max_epochs 3 --learning_rate 0.01")
    before = (one.folder / "checkpoints" / "best.ckpt").read_bytes()
    split = sorted((cli.store / "splits").iterdir())
    args = [str(one.folder), *QUICK.split(), "--output", "page.html"]
    found, other = run(args), run([str(two.folder / "checkpoints" / "last.ckpt"), *args[1:]])
    assert (one.folder / "checkpoints" / "best.ckpt").read_bytes() == before
    assert sorted((cli.store / "splits").iterdir()) == split
    assert Path("page.html").is_file() and not (one.folder / "probe.html").exists()
    # The rows of the raw signal and of the untrained backbone know nothing of the training.
    for model in ("raw", "untrained"):
        rows, others = ([row for row in f.rows if row.model == model] for f in (found, other))
        assert rows == others and rows
    flat = flat_probes(found.rows)
    assert set(flat) == {"probe/mean/auroc", "probe/untrained_mean/auroc"}
    assert found.notes == () and not found.supervised


def test_labels_are_those_of_a_fine_tuning_unless_flags_name_others(cli: CommandLine) -> None:
    write_tables(cli)
    done = cli.run(f"{OWN} --train_split 0.5 --val_split 0.2 --limit_train_batches 1")
    own = probe_request(*parse_probe([str(done.folder)])).config.downstream
    assert own is not None and own.label_csv is not None and own.task == own.target_column
    other = probe_request(*parse_probe([str(done.folder), *["--downstream_task", "sex"]]))
    assert other.config.downstream is not None and not other.config.downstream.has_own_targets
    rows_of(done, f"{QUICK} --downstream_task sex")
    page = (done.folder / "probe.html").read_text(encoding="utf-8")
    assert "was trained with labels" in page


def test_a_regression_has_correlations_and_no_curve(pretrained: Finished) -> None:
    split = "--dataset_split_num 2 --train_split 0.5 --val_split 0.2"
    rows = rows_of(pretrained, f"{QUICK} --downstream_task age {split}")
    assert kinds(rows, "metric", "n_train", "n_test") == {("pearson_r", 14, 6), ("r2", 14, 6)}
    assert kinds(rows, "subjects_a_class") == {(None,)}
    page = (pretrained.folder / "probe.html").read_text(encoding="utf-8")
    assert "a regression has no classes" in page and "was trained with labels" not in page
    assert page.index("<img") < page.index("<table")


DATA_FLAGS: dict[str, dict[str, Any]] = {
    "--dataset_split_num 2": {"dataset_split_num": 2},
    "--train_split 0.5": {"train_split": 0.5},
    "--val_split 0.1": {"val_split": 0.1},
    "--group_by session": {"group_by": "session"},
    "--family_column age": {"family_column": "age"},
    "--stratify_by sex": {"stratify_by": ("sex",)},
    "--match_on age --match_caliper 3": {"match_on": ("age",), "match_caliper": 3.0},
    "--limit_training_samples 9": {"limit_training_samples": 9.0},
    "--limit_validation_samples 2": {"limit_validation_samples": 2.0},
    "--limit_test_samples 2": {"limit_test_samples": 2.0},
    "--bad_subj_path bad.txt": {"bad_subj_path": "bad.txt"},
    "--eval_batch_size 7": {"eval_batch_size": 7},
    "--stride_between_seq 0.5": {"stride_between_seq": 0.5},
    "--seed 9": {"seed": 9},
    "--dataset_name ABIDE": {"dataset_name": ("ABIDE",)},
    "--image_path elsewhere": {"image_path": ("elsewhere",)},
}


def test_a_flag_of_the_data_overrides_the_run(pretrained: Finished) -> None:
    def config(flags: str) -> Any:
        return probe_request(*parse_probe([str(pretrained.folder), *flags.split()])).config.data

    recorded = config("")
    assert (recorded.train_split, recorded.grid, recorded.sequence_length) == (0.6, (12,) * 3, 4)
    for flags, expected in DATA_FLAGS.items():
        found = config(flags)
        for name, value in expected.items():
            assert getattr(found, name) == value, flags
            assert getattr(recorded, name) != value, flags


def test_flags_of_labels_machine_and_probe(pretrained: Finished, cli: CommandLine) -> None:
    write_tables(cli)

    def request(flags: str) -> Any:
        return probe_request(*parse_probe([str(pretrained.folder), *flags.split()]))

    plain = request("")
    assert plain.config.downstream.task == "sex" and plain.config.downstream.shuffle_labels is None
    task = request("--downstream_task age --shuffle_labels 4").config.downstream
    assert (task.task, task.task_type, task.shuffle_labels) == ("age", "regression", 4)
    own = request(OWN.removeprefix("--downstream_task sex")).config.downstream
    assert own.label_csv is not None
    probe = request("--blocks 1 --pools mean_sd --labels 8 4 --draws 5 --fc_atlas a.nii")
    assert (probe.blocks, probe.pools, probe.sizes, probe.draws) == (1, ("mean_sd",), (4, 8), 5)
    assert str(probe.atlas) == "a.nii"
    machine = request("--accelerator cpu --ssd_backend reference").config
    assert machine.trainer == {"accelerator": "cpu"}
    assert machine.flags["ssd_backend"] == "reference"


@pytest.fixture
def pretrained(cli: CommandLine) -> Finished:
    """A pre-training whose weights do not matter."""
    Path("bad.txt").write_text("sub-01\n")
    return cli.run(f"{NEXT} --limit_train_batches 1 --limit_val_batches 1")


def test_the_same_twice_and_other_rows_with_other_flags(pretrained: Finished) -> None:
    def rows(flags: str = "") -> list[ProbeRow]:
        words = [str(pretrained.folder), *QUICK.split(), *flags.split()]
        return list(probe(probe_request(*parse_probe(words))).rows)

    plain = rows()
    assert {row.layer for row in plain} == {"embedding", "features", "raw"}
    assert rows() == plain
    changed = rows("--seed 9 --shuffle_labels 3")
    assert len(changed) == len(plain)
    for model in ("untrained", "raw"):
        one, other = ([r.value for r in found if r.model == model] for found in (plain, changed))
        assert one != other


def test_a_mistake_gets_one_line(
    pretrained: Finished, cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, expected in (
        ("--pools means", "Did you mean 'mean'"),
        ("--draws 1", "--draws: got 1, expected 2"),
        ("--blocks -1", "--blocks: got -1"),
        ("--labels 0", "--labels: got 0"),
        ("--json rows.txt", "--json: got 'rows.txt'"),
        ("--json none/rows.json", "--json: there is no folder 'none'"),
        ("--output page", "--output: got 'page'"),
        ("--embed_dim 4", "--embed_dim"),
        ("--target_column group", "--target_column: only used with --label_csv"),
        ("--downstream_task diagnosed", "--downstream_task: unknown name"),
        ("--limit_test_samples 0.25", "--downstream_task: the test set has"),
        ("--limit_training_samples 0.01", "--downstream_task: the training subjects hold no"),
        ("--dataset_split_num 2 --train_split 0.7 --val_split 0.3", "the test set has 0 "),
    ):
        assert expected in refused(pretrained, flags, capsys), flags
    assert "RUN: there is no file 'none.ckpt'" in refused("none.ckpt", "", capsys)

    # Labels of one class only; too few subjects of a class.
    table = [f"sub-{i + 1:02d},{'a' if i < 19 else 'b'}" for i in range(20)]
    Path("one.csv").write_text("\n".join(["subject,kind", *table]) + "\n")
    one = refused(pretrained, "--label_csv one.csv --target_column kind", capsys)
    assert "--downstream_task: the" in one and "0 b" in one
    Path("none.csv").write_text(
        "subject,kind\n" + "".join(f"sub-{i:02d},a\n" for i in range(1, 21))
    )
    assert "classes" in refused(pretrained, "--label_csv none.csv --target_column kind", capsys)

    # A file without metadata, and results of the other model.
    assert export([str(pretrained.folder), "released.pt"]) == 0
    message = refused("released.pt", "", capsys)
    assert "does not say how it was trained" in message and "--freeze_feature_extractor" in message
    fit = Path("Results/PPMI/NeuroSSM/seed_0/holdout")
    fit.mkdir(parents=True)
    for name in ("weights.safetensors", "metrics.json"):
        (fit / name).write_text("{}")
    for place in (fit, fit / "weights.safetensors", fit.parents[1], fit.parents[2], fit.parents[3]):
        assert "results of NeuroSSM" in refused(str(place), "", capsys)
    assert not list(pretrained.folder.glob("*.html"))


def test_a_model_of_the_task_is_not_probed_on_its_training_subjects(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    done = cli.run("--limit_train_batches 1")
    message = refused(done, f"{QUICK} --dataset_split_num 2", capsys)
    assert "held out here were trained on" in message
