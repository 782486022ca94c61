"""Objectives of pre-training and the order of tokens: runs, checkpoints, and the study of them."""

from __future__ import annotations

import csv
import json
import math
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from neuromamba.commands import reproduce
from neuromamba.commands.probe import main as probe
from neuromamba.commands.report import main as report
from neuromamba.commands.train import main as train
from neuromamba.common.stages import StageFailure
from neuromamba.evaluation.probe_rows import ProbeRow
from neuromamba.fmamba.checkpoint_flags import flags_of_metadata
from neuromamba.fmamba.probe_flags import parse_probe
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.reports import objectives, objectives_table, reproduction_run
from neuromamba.reports.objectives import EFFECTS, OBJECTIVES
from neuromamba.reports.objectives_table import COLUMNS, over_seeds
from tests.helpers.flag_tests import NEXT, SAME_PLACE, VOXELWISE
from tests.helpers.tiny import CommandLine

LONG = f"{VOXELWISE} --img_size 12 12 12 8"


def test_dynamics_are_learned_at_the_same_place(cli: CommandLine) -> None:
    """The tiny runs are sines; both orders and both losses learn them, on one metric."""
    settings = f"{LONG} --stride_between_seq 0.25 --max_epochs 12 --learning_rate 1e-2"
    settings += " --check_val_every_n_epoch 12"
    skills = {
        flags: cli.run(f"{SAME_PLACE} {settings} {flags}").written["val/dynamic_skill"]
        for flags in ("", "--token_order space_first", "--loss_on difference")
    }
    assert min(skills.values()) > 0.1, skills


def test_the_order_of_tokens_belongs_to_the_checkpoint(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fine-tuning and probing take it from there; another is refused; older files have raster."""
    done = cli.run(f"{SAME_PLACE} --token_order space_first --loss_on difference {LONG}")
    best = done.folder / "checkpoints" / "best.ckpt"
    metadata = done.checkpoint("best")["neuromamba"]
    assert metadata["model"]["token_order"] == "space_first"
    assert metadata["pretrain"]["loss_on"] == "difference"
    tuned = cli.run(f"--load_model_path {best} --img_size 12 12 12 8 --learning_rate 1e-30")
    assert tuned.checkpoint()["neuromamba"]["model"]["token_order"] == "space_first"
    assert "token_order: space_first" in (tuned.folder / "config.yaml").read_text()
    wrong = f"--load_model_path {best} --token_order raster"
    assert train(cli.argv(f"{wrong} --img_size 12 12 12 8")) == 2
    message = capsys.readouterr().err
    assert "--token_order: got raster" in message and "trained with space_first" in message
    words = f"--blocks 0 --pools mean --labels 2 --draws 2 --json {cli.folder}/probe.json"
    assert probe([str(done.folder), *words.split(), "--accelerator", "cpu"]) == 0
    assert report([str(done.folder)]) == 0  # with a figure of predicted tokens
    older = {
        **metadata,
        "model": {k: v for k, v in metadata["model"].items() if k != "token_order"},
    }
    assert flags_of_metadata(older, False)["token_order"] == "raster"


def test_an_interrupted_run_of_another_objective_is_not_continued(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    done = cli.run(f"{SAME_PLACE} {LONG} --max_epochs 2")
    resume = f"--max_epochs 4 --resume_ckpt_path last --output_dir {done.folder}"
    assert train(cli.argv(f"{NEXT} {LONG} {resume}")) == 2
    assert "pretrain predict same_place" in capsys.readouterr().err
    assert train(cli.argv(f"{SAME_PLACE} {LONG} {resume} --token_order space_first")) == 2
    assert "--token_order raster" in capsys.readouterr().err
    assert train(cli.argv(f"{SAME_PLACE} {LONG} {resume}")) == 2, "the schedule spans the epochs"


def test_predictions_are_drawn_where_their_targets_are(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that outputs no change, with the loss on differences, predicts the token before."""
    from neuromamba.fmamba.backbone import FMamba
    from neuromamba.reports.brain_figures import next_token_example

    done = cli.run(f"{SAME_PLACE} --loss_on difference --token_order space_first {LONG}")
    run = RunFolder(done.folder)
    forward = FMamba.forward_tokens

    def unchanged(self: FMamba, *args: Any) -> Any:
        output = forward(self, *args)
        assert output.prediction is not None
        object.__setattr__(output, "prediction", torch.zeros_like(output.prediction))
        return output

    monkeypatch.setattr(FMamba, "forward_tokens", unchanged)
    data = cli.data(f"{SAME_PLACE} {LONG}")
    first, later = (next_token_example(run, data, frame=frame) for frame in (2, 4))
    known = ~np.isnan(later.predicted)
    assert known.any() and np.array_equal(known, ~np.isnan(later.target))
    np.testing.assert_array_equal(later.predicted[known], first.target[known])
    assert np.isnan(next_token_example(run, data, frame=0).predicted).all()


# ----------------------------------------------------------------------------------- the study


def score(run: str, pool: str, model: str, size: int | None) -> float:
    """A score that differs from run to run."""
    return zlib.crc32(f"{run} {pool} {model} {size}".encode()) / 2**32


def write_probe(words: Sequence[str]) -> None:
    """Rows as the command writes them, made up; its flags are checked, a run has to be there."""
    args, _ = parse_probe(words)
    assert (Path(args.run) / "checkpoints" / "best.ckpt").is_file()
    shared: dict[str, Any] = {"metric": "auroc", "low": 0.0, "high": 1.0}
    shared |= {"n_train": 16, "n_test": 4, "draws": args.draws}
    rows = [
        ProbeRow(
            layer=layer,
            pool=pool,
            model=model,
            probe=kind,
            value=score(args.run, pool, model, size) if good else math.nan,
            subjects_a_class=size,
            **shared,
        )
        for layer, kind, good in (
            ("features", "linear", True),
            ("features", "knn", False),
            ("embedding", "linear", False),
        )
        for pool in args.pools
        for model in ("pretrained", "untrained")
        for size in (None, *args.labels)
    ]
    Path(args.json).write_text(json.dumps([row.plain() for row in rows]))


@pytest.fixture
def tiny_study(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Flags of a study of small runs in this process, and the commands that it does."""
    chosen = ("untrained", "voxelwise", "same_place_2", "tubes")
    monkeypatch.setattr(objectives, "EFFECTS", {"hard": ("--effect_size", "1")})
    monkeypatch.setattr(objectives_table, "EFFECTS", {"hard": ("--effect_size", "1")})
    kept = {name: OBJECTIVES[name] for name in chosen}
    for module in (objectives, objectives_table):
        monkeypatch.setattr(module, "OBJECTIVES", kept)
    monkeypatch.setattr(objectives_table, "UNTRAINED_ROWS", {"voxelwise": "untrained beside it"})
    model = "--embed_dim 16 --depth 1 --patch_size 6 6 6 2 --img_size 12 12 12 6"
    training = "--learning_rate 3e-3 --batch_size 4 --max_epochs 1 --train_split 0.6"
    training += " --val_split 0.2 --check_val_every_n_epoch 1 --accelerator cpu"
    monkeypatch.setattr(objectives, "MODEL", tuple(model.split()))
    monkeypatch.setattr(objectives, "TRAINING", tuple(training.split()))
    done: list[str] = []

    def in_process(stage: str, command: Sequence[str]) -> None:
        done.append(f"{command[0]} {stage}")
        if command[0] == "probe":
            write_probe(command[1:])
        elif train(list(command[1:])) != 0:
            raise StageFailure(f"stage '{stage}' failed")

    def same_store(folder: Path, commands: Sequence[Sequence[str]]) -> None:
        done.append("store")
        assert [command[0] for command in commands] == ["synthetic", "preprocess"]
        shutil.copytree(cli.store, folder / "store")

    monkeypatch.setattr(objectives, "run_stage", in_process)
    monkeypatch.setattr(objectives, "write_store", same_store)
    where = f"--output_dir {cli.folder}/runs --paper_dir {cli.folder}/paper"
    return ["--study", "objectives", "--seeds", "1", "2", *where.split()], done


def test_the_study_from_nothing_and_again(
    tiny_study: tuple[list[str], list[str]], cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    words, done = tiny_study
    one = [word for word in words if word != "2"]
    assert reproduce.main(one) == 0
    assert len(done) == 1 + 2 * 4
    text = (cli.folder / "paper" / "study_objectives.md").read_text()
    assert "one seed, so there is no interval" in text and "[" not in text.split("## ")[1]

    # Another seed adds its jobs, and what has finished is not repeated.
    assert reproduce.main(words) == 0
    assert len(done) == 2 * (1 + 2 * 4) and done.count("store") == 2
    (cli.folder / "runs" / "hard_seed2" / "tubes_probe" / "reproduced").unlink()
    assert reproduce.main([*words, "--collect"]) == 0
    text = (cli.folder / "paper" / "study_objectives.md").read_text()
    (line,) = [one for one in text.splitlines() if one.startswith("| voxel-wise, masked tubes")]
    assert line.endswith("| 1 of 2 |")
    assert reproduce.main(words) == 0
    assert done[18:] == ["probe tubes"]

    # The seeds one by one, as of two machines, make the same tables.
    files = []
    for seed in ("1", "2"):
        apart = [word for word in words if word != {"1": "2", "2": "1"}[seed]]
        apart[apart.index("--paper_dir") + 1] = str(cli.folder / f"paper_{seed}")
        assert reproduce.main([*apart, "--collect"]) == 0
        files.append(cli.folder / f"paper_{seed}" / "study_objectives.json")
    nowhere = f"--output_dir {cli.folder}/none --paper_dir {cli.folder}/both --collect --add"
    both = ["--study", "objectives", *nowhere.split(), *map(str, files)]
    assert reproduce.main([*both, "--seeds", "1"]) == 0
    for name in ("study_objectives.csv", "study_objectives.json"):
        ours, theirs = ((cli.folder / folder / name).read_text() for folder in ("both", "paper"))
        if name.endswith("json"):
            ours, theirs = (json.dumps(json.loads(one)["rows"]) for one in (ours, theirs))
        assert ours == theirs
    capsys.readouterr()
    assert reproduce.main([*both, str(files[0]), "--seeds", "1"]) == 2
    assert "holds seed 1 of the hard effect, which is there already" in capsys.readouterr().err

    record = json.loads((cli.folder / "paper" / "study_objectives.json").read_text())
    rows = {(row["objective"], row["model"]): row for row in record["rows"]}
    assert len(rows) == 4 + 1 and record["seeds"] == [1, 2]
    for name in ("voxelwise", "same_place_2", "tubes"):
        assert rows[name, "pretrained"]["steps"] == {"1": 6, "2": 6}
    assert rows["untrained", "pretrained"]["steps"] == {"1": 1, "2": 1}

    def expected(name: str, model: str, pool: str, size: int | None) -> list[float]:
        folders = [cli.folder / "runs" / f"hard_seed{seed}" / name for seed in (1, 2)]
        return [score(str(folder), pool, model, size) for folder in folders]

    for model, name in (("pretrained", "tubes"), ("untrained", "voxelwise")):
        for key, size in (("all", None), ("4", 4), ("16", 16)):
            cell = rows[name, model]["values"][f"mean_sd/{key}"]
            values = expected(name, model, "mean_sd", size)
            assert list(cell["seeds"].values()) == values
            assert cell["mean_and_interval"][0] == pytest.approx(np.mean(values))
    less = np.subtract(*(expected(n, "pretrained", "mean_sd", 8) for n in ("tubes", "voxelwise")))
    low, high = stats.t.interval(0.95, 1, loc=less.mean(), scale=stats.sem(less))
    found = rows["tubes", "pretrained"]["difference"]["mean_sd/8"]
    assert found == pytest.approx([less.mean(), low, high])
    for name, known in (("same_place_2", {}), ("tubes", {}), ("voxelwise", {"1", "2"})):
        assert set(rows[name, "pretrained"]["values"]["dynamic_skill"]["seeds"]) == set(known)
    with open(cli.folder / "paper" / "study_objectives.csv", newline="") as stream:
        table = list(csv.reader(stream))
    assert len({len(line) for line in table}) == 1 and len(table) == 1 + 5
    assert [line[-1] for line in table[1:]] == ["2 of 2"] * 5
    skill = table[0].index(COLUMNS["dynamic_skill"])
    by_label = {line[1]: line[skill] for line in table[1:]}
    assert by_label["voxel-wise, masked tubes"] == "not defined"
    assert by_label["untrained beside it"] == "not measured"


def test_over_seeds_against_scipy() -> None:
    values = [0.61, 0.72, 0.55, 0.9]
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert tuple(found) == pytest.approx((np.mean(values), low, high))
    assert over_seeds([0.5])[0] == 0.5 and math.isnan(over_seeds([0.5]).low)
    assert math.isnan(over_seeds([]).value)


def test_every_pretraining_has_the_same_steps_and_windows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two commands of the study differ in what their rows say, and in their folders only."""
    assert reproduce.main(["--study", "objectives", "--seeds", "1", "--dry_run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    trainings = [line for line in lines if line[1] == "train"]
    assert len(trainings) == len(EFFECTS) * len(OBJECTIVES)
    assert sum(line[1] == "probe" for line in lines) == len(trainings)
    free = {"--input_scaling_method", "--predict", "--predict_ahead", "--loss_on", "--token_order"}
    free |= {"--masking_type", "--use_mim", "--use_autoregressive", "--output_dir"}
    shared = set()
    for line in trainings:
        if line[-1].endswith("untrained"):
            assert line[line.index("--learning_rate") + 1] == "1e-12"
            continue
        kept, flag = [], ""
        for word in line:
            flag = word if word.startswith("--") else flag
            if flag not in free:
                kept.append(word.replace("/hard_", "/easy_"))
        shared.add(tuple(kept))
    assert len(shared) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--study objective", "--study: unknown name 'objective'. Did you mean 'objectives'?"),
        ("--study objectives --seeds 1 1", "--seeds: got [1, 1]"),
        ("--study objectives --dataset_name HCP", "--dataset_name: got 'HCP'"),
        ("--study objectives --image_path x", "--image_path: only used with --table"),
        ("--study objectives --job 1", "--job: only used with --table"),
        ("--study objectives --dry_run --gpu H100", "--gpu: only used with --table"),
        ("--study objectives --script slurm", "--script: only used with --table"),
        ("--study objectives --collect", "'output/study_objectives' does not exist"),
        ("--study objectives -- --predict same_place", "--predict: stands after --"),
        ("--study objectives -- --embed_dim 32", "--embed_dim: stands after --"),
    ],
)
def test_mistakes(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(words.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_one_of_table_and_study(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--table", "1", "--study", "objectives"]):
        with pytest.raises(SystemExit) as ended:
            reproduce.main(words)
        assert ended.value.code == 2
        assert "--table" in capsys.readouterr().err
    assert reproduction_run.MARKER == objectives_table.MARKER


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": [{}]}', '{"rows": 3}'])
def test_what_cannot_be_added_is_named(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    assert reproduce.main(["--study", "objectives", "--add", str(path)]) == 2
    assert f"--add: '{path}' " in capsys.readouterr().err
    assert reproduce.main(["--table", "1", "--add", str(path)]) == 2
    assert "--add: only used with --study" in capsys.readouterr().err
