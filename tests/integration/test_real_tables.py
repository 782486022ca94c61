"""neuromamba reproduce --table painted, sherlock, stages: small synthetic copies of their files."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuromamba.commands import reproduce, train
from neuromamba.evaluation.exact_intervals import proportion_bounds
from neuromamba.reports.real_subjects import (
    painted,
    painted_steps,
    sherlock_steps,
    stages_steps,
    tables,
)
from neuromamba.reports.real_subjects.sherlock_data import load_sherlock, sherlock_splits
from neuromamba.reports.real_subjects.subject_rows import Scored, auroc_rows
from tests.helpers.region_collections import LABELS, people, write_abide_npz, write_npz

Run = Callable[[str], tuple[int, str, str]]
COMMANDS = {
    "regions import": "regions_import",
    "regions paint": "regions_paint",
    "regions train": "regions_train",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with its steps in this process: exit status, stdout, stderr."""

    def in_process(stage: str, command: tuple[str, ...]) -> None:
        print(f"$ {stage}")
        name = COMMANDS.get(" ".join(command[:2]), "")
        words = list(command[2:] if name else command[1:])
        module = importlib.import_module(f"neuromamba.commands.{name or command[0]}")
        assert module.main(words) in (0, None), (stage, capsys.readouterr().err[-2000:])

    def module(stage: str, name: str, words: tuple[str, ...]) -> None:
        print(f"$ {stage}")
        assert importlib.import_module(name).main(words) == 0, capsys.readouterr().err[-2000:]

    monkeypatch.setattr(tables, "run_stage", in_process)
    monkeypatch.setattr(tables, "run_module", module)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")  # a training sets it
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> tuple[int, str, str]:
        status = reproduce.main(words.split())
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def groups_of(path: str = "paper/table.json") -> dict[str, dict[str, Any]]:
    found = json.loads(Path(path).read_text())["groups"]
    return {group["name"]: group for group in found}


# --- scores of subjects ---------------------------------------------------------------------------


def test_auroc_is_that_within_a_fold() -> None:
    """Scores of two folds on different scales are not compared with each other."""
    truth = {f"{fold}{i}": i % 2 for fold in "ab" for i in range(10)}
    fold = {name: int(name[0] == "b") for name in truth}
    good = {name: truth[name] + 100.0 * fold[name] for name in truth}
    good["a0"] = 2.0  # one of the first fold is above all five of the other class
    flat = dict.fromkeys(truth, 0.5)
    one, two = auroc_rows([Scored("one", good, 3.0), Scored("two", flat)], truth, fold)
    assert one.values["auroc"].value == pytest.approx((20 / 25 + 1) / 2) and one.seconds == 3.0
    assert two.values["auroc"].value == 0.5
    assert one.less is None and two.less is not None
    assert two.less.value == pytest.approx(0.4) and 0 < two.less.low < two.less.high


# --- painted --------------------------------------------------------------------------------------

GRID = (9, 12, 8)


def write_painted(folder: Path) -> None:
    """The series, phenotypes and atlas of ``abide_roi``, small."""
    folder.mkdir()
    write_abide_npz(folder, people(24))
    labels = np.zeros(GRID, np.int16)
    for i, label in enumerate(map(int, LABELS)):
        labels[1 + i % 6, 1:11, 1 + 3 * (i // 6) : 4 + 3 * (i // 6)] = label
    affine = np.array([[-20.0, 0, 0, 80], [0, 20, 0, -126], [0, 0, 20, -72], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(labels, affine), folder / "cc200_atlas_3mm.nii.gz")


@pytest.mark.timeout(300)
def test_painted_from_files_to_figure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_painted(Path("abide_roi"))
    patch = ("--patch_size", "3", "3", "2", "2")
    for name, value in {
        "GRID": tuple(map(str, GRID)),
        "LABELS": {"SEX": "Sex, as a code", "diagnosis": "Autism against control"},
        "TRAINED": ("diagnosis",),
        "SUBJECTS": "24",
        "FMAMBA": (*patch, "--embed_dim", "16", "--depth", "1"),
        "SWIFT": (
            "--model",
            "swift",
            *patch,
            "--embed_dim",
            "8",
            "--swin_depths",
            "1",
            "1",
            "--swin_heads",
            "2",
            "2",
        ),
    }.items():
        monkeypatch.setattr(painted, name, value)
    words = "--table painted --data_dir abide_roi --paper_dir paper"
    status, _, err = run(words)
    assert status == 0, err
    group = groups_of()["diagnosis"]
    rows = {row["model"]: row for row in group["rows"]}
    assert [*rows][:3] == [*painted.MODELS.values()]
    assert {"FC of the series", "site alone"} < set(rows) and len(rows) == 9
    assert group["subjects"] == 24 and group["splits"] == 2
    # What is planted are correlations between regions 1 to 6, which FC reads.
    assert rows["FC of the series"]["metrics"]["auroc"]["value"] > 0.9
    assert rows["site alone"]["note"] and rows["SwiFT, from scratch"]["seconds_a_fit"] > 0
    steps = [
        json.loads(Path(f"output/reproduce_painted/{name}_diagnosis_1/metrics.json").read_text())
        for name in painted.MODELS
    ]
    assert len({one["train/steps"] for one in steps}) == 1
    status, out, _ = run(words)
    assert status == 0 and "$ " not in out and out.count("finished before") == 14


def test_two_folds_exchange_their_subjects() -> None:
    table = {f"s{i:02d}": {"site": "ABC"[i % 3], "diagnosis": "xy"[i // 3 % 2]} for i in range(48)}
    one, two = painted_steps.two_folds(table, 0)
    assert set(one["test"]) | set(two["test"]) == set(table)
    assert not set(one["test"]) & set(two["test"])
    for parts in (one, two):
        assert sorted(name for part in parts.values() for name in part) == sorted(table)
        assert 0 < len(parts["val"]) <= 4
        counts = Counter((table[n]["site"], table[n]["diagnosis"]) for n in parts["test"])
        assert set(counts.values()) == {4}
    assert painted_steps.two_folds(table, 1) != [one, two]


# --- sherlock -------------------------------------------------------------------------------------


def write_sherlock_file(folder: Path, subjects: int = 6) -> None:
    """Three scenes that everybody's voxels tell apart; the retelling is smoother in time."""
    rng = np.random.default_rng(0)
    ijk = np.argwhere(np.ones((9, 11, 9), bool))[::7] + np.array([26, 12, 28])
    scene = np.repeat([1, 2, 3], 20)
    pattern = rng.standard_normal((3, len(ijk)))
    movie, recall = [], []
    for _ in range(subjects):
        movie.append(pattern[scene - 1] + rng.standard_normal((60, len(ijk))))
        noise = rng.standard_normal((62, len(ijk)))
        recall.append(noise[:-2] + noise[1:-1] + noise[2:])
    folder.mkdir()
    np.savez(
        folder / "sherlock_pmc_dev.npz",
        subject=np.array([f"s{i + 1:02d}" for i in range(subjects)]),
        movie=np.stack(movie).astype(np.float16),
        recall=np.concatenate(recall).astype(np.float16),
        recall_length=[60] * subjects,
        movie_scene=scene,
        run_break=30,
        voxel_ijk=ijk,
        affine=np.array([[3.0, 0, 0, -90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]]),
        TR=1.5,
    )


@pytest.mark.timeout(300)
def test_sherlock_from_files_to_figure(run: Run, tmp_path: Path) -> None:
    """One fold is decoded; the others' scores are made up."""
    write_sherlock_file(Path("sherlock_pmc"))
    out = Path("output/reproduce_sherlock")
    prepared = out / "prepared"
    assert sherlock_steps.main(["prepare", "sherlock_pmc", str(prepared)]) == 0
    words = ["connectivity", "sherlock_pmc", "-o", str(out / "connectivity.json")]
    assert sherlock_steps.main(words) == 0
    shared = (
        f"--dataset_name Own --image_path {prepared / 'store'} --dataset_split_num 1 --img_size 9 "
        f"12 9 6 --batch_size 8 --input_scaling_method voxelnorm_zeroback --max_epochs 1 "
        f"--accelerator cpu"
    )
    model = "--patch_size 3 3 3 2 --embed_dim 16 --depth 1"
    before = out / "pretraining_1_seed_0"
    objective = f"--pretraining --use_autoregressive --output_dir {before}"
    train.run(f"{shared} {model} {objective}".split())
    scores = out / "scores_1_seed_0.json"
    words = ["decode", "sherlock_pmc", str(prepared), str(before), "-o", str(scores)]
    assert sherlock_steps.main(words) == 0
    decoded = json.loads(scores.read_text())
    subjects = load_sherlock(Path("sherlock_pmc")).subjects
    splits = sherlock_splits(subjects)
    assert set(decoded["scene"]["raw voxels"]) == set(splits[1]["test"])
    assert np.mean([*decoded["scene"]["raw voxels"].values()]) == 1
    autocorrelation = decoded["state"]["auroc"]["lag-1 autocorrelation of voxels"]
    assert min(autocorrelation.values()) > 0.9
    for fold in (2, 3, 4):
        tested = splits[fold]["test"]
        made_up = {
            "dynamic_skill": 0.1,
            "scene": {row: dict.fromkeys(tested, 0.5) for row in decoded["scene"]},
            "state": {
                "auroc": {row: dict.fromkeys(tested, 0.7) for row in decoded["state"]["auroc"]}
            },
        }
        (out / f"scores_{fold}_seed_0.json").write_text(json.dumps(made_up))
    task = (
        f"--events {prepared / 'segments.tsv'} --event_delay 0 --model swift --patch_size 3 3 3 2 "
        f"--embed_dim 8 --swin_depths 1 1 --swin_heads 2 2"
    )
    run_of = out / "swift_1_seed_0"
    train.run(f"{shared} {task} --output_dir {run_of}".split())
    for fold in (2, 3, 4):  # the same predictions, of the others' subjects
        table = pd.read_csv(run_of / "predictions.csv")
        own, other = splits[1]["test"], splits[fold]["test"]
        parts = [
            table[table["subject"].str.startswith(name)].assign(
                subject=lambda rows, a=name, b=new: rows["subject"].str.replace(a, b)
            )
            for name, new in zip(own, other, strict=False)
        ]
        folder = out / f"swift_{fold}_seed_0"
        folder.mkdir()
        pd.concat(parts).to_csv(folder / "predictions.csv", index=False)
        (folder / "metrics.json").write_text(json.dumps({"train/seconds": 5.0}))
    status, _, err = run("--table sherlock --collect --paper_dir paper")
    assert status == 0, err
    found = groups_of()
    assert found["scene"]["subjects"] == found["state"]["subjects"] == len(subjects)
    rows = {row["model"]: row for row in found["state"]["rows"]}
    assert {"SwiFT, from scratch", "FC between patches"} <= set(rows)
    assert "FMamba, from scratch" not in rows  # has not run
    assert rows["SwiFT, from scratch"]["seconds_a_fit"] > 3
    assert "1 seed of frozen features" in Path("paper/table.md").read_text()


# --- stages ---------------------------------------------------------------------------------------


def write_stages(folder: Path, people_twice: int = 16) -> None:
    """People with connections of their own in both sessions, and two who came once."""
    rng = np.random.default_rng(0)
    scans, subjects, sessions = [], [], []
    for i in range(people_twice + 2):
        mixing = rng.standard_normal((12, 12))
        for session in (1, 2) if i < people_twice else (1,):
            noise = rng.standard_normal((202, 12))
            smooth = noise[:-2] + noise[1:-1] + noise[2:]
            scans.append(smooth @ mixing + 0.3 * rng.standard_normal((200, 12)))
            subjects.append(f"sub-{i + 1:03d}")
            sessions.append(session)
    folder.mkdir()
    write_npz(folder / "stages_dev.npz", scans, subject=subjects, session=sessions)
    rows = ["subject,group,has_ses2"]
    for i, name in enumerate(dict.fromkeys(subjects)):
        rows.append(f"{name},{('placebo', 'medication')[i % 2]},{int(i < people_twice)}")
    (folder / "stages_labels_dev.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.timeout(300)
def test_stages_from_files_to_figure(run: Run) -> None:
    write_stages(Path("stages_schaefer419"))
    words = "--table stages --data_dir stages_schaefer419 --paper_dir paper"
    status, _, err = run(f"{words} -- --epochs 1 --members 1")
    assert status == 0, err
    (group,) = groups_of().values()
    rows = {row["model"]: row for row in group["rows"]}
    assert group["subjects"] == 16 and next(iter(rows)) == stages_steps.OWN
    fc = rows["FC, correlation"]["metrics"]["first_to_second"]
    assert fc["value"] == 1.0
    assert [fc["low"], fc["high"]] == pytest.approx([*proportion_bounds(16, 16, 0.95)])
    assert rows["FC, correlation"]["note"] == "16 and 16 of 16"
    parts = json.loads(Path("output/reproduce_stages/parts/parts.json").read_text())
    assert sorted(name for part in parts.values() for name in part) == sorted(
        f"sub-{i + 1:03d}" for i in range(16)
    )
    status, out, _ = run(f"{words} -- --epochs 1 --members 1")
    assert status == 0 and "$ " not in out and out.count("finished before") == 11


def test_a_scan_is_identified_by_correlation() -> None:
    rng = np.random.default_rng(1)
    one = rng.standard_normal((6, 40))
    assert stages_steps.identified(one, 3 * one + 5).all()
    assert not stages_steps.identified(one, one[[1, 2, 3, 4, 5, 0]]).any()


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--table painted", "'../shared/data/abide_roi' does not exist"),
        ("--table sherlock", "'../shared/data/sherlock_pmc' does not exist"),
        ("--table stages", "'../shared/data/stages_schaefer419' does not exist"),
        ("--table painted --seeds 0 1", "--seeds: --table painted takes one, got 2"),
        ("--table sherlock -- --embed_dim 8", "--embed_dim: stands after --"),
    ],
)
def test_mistakes(run: Run, words: str, message: str) -> None:
    status, _, err = run(words)
    assert status == 2 and message in err, err


def test_tables_that_can_be_made_are_made(run: Run) -> None:
    """The others are named with the reason."""
    write_stages(Path("stages_schaefer419"))
    status, out, err = run("--table sherlock stages --dry_run")
    assert status == 0, err
    assert "python -m neuromamba.reports.real_subjects.stages_steps divide" in out
    assert "neuromamba train --dataset_name Own" in out


@pytest.mark.real_data
def test_connectivity_identifies_as_the_source_says(shared_data: Path) -> None:
    """24 of 28 (SOURCES.md)."""
    data = shared_data / "stages_schaefer419" / "stages_dev.npz"
    if not data.is_file():
        pytest.skip(f"no real data: {data} is absent")
    with np.load(data) as file:
        series = file["ts"].astype(np.float64).reshape(-1, 234, 419)
        subject, session = file["subject"], file["session"].astype(str)
    twice = [name for name in np.unique(subject) if (subject == name).sum() == 2]
    assert len(twice) == 28
    pairs = []
    for number in np.unique(session)[:2]:
        rows = [np.flatnonzero((subject == name) & (session == number))[0] for name in twice]
        upper = np.triu_indices(419, 1)
        pairs.append(np.stack([np.arctanh(np.corrcoef(series[i].T)[upper]) for i in rows]))
    assert stages_steps.identified(*pairs).sum() == 24
