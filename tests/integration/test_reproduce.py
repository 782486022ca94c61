"""neuromamba reproduce: which runs a table needs, that none is done twice, and what is written."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from neuromamba.commands import reproduce
from neuromamba.commands.train import main as train
from neuromamba.common.stages import StageFailure
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.evaluation.scores import read_scores
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config
from neuromamba.reports import reproduction, reproduction_run
from neuromamba.reports.reproduction import GRIDS, Grid, Study
from tests.helpers.paths import ROOT
from tests.helpers.tiny import CommandLine

README = (ROOT / "README.md").read_text(encoding="utf-8")
HCP = "--dataset_name HCP --image_path /path/to/store"
_SPLIT = "--train_split 0.6 --val_split 0.2 --batch_size 4 --max_epochs 1"
TINY = Grid(
    name="synthetic",
    sizes={
        label: ("--embed_dim", width, "--depth", "1")
        for label, width in zip(GRIDS["synthetic"].sizes, ("16", "32", "16", "32"), strict=True)
    },
    medium="5.4M",
    window=reproduction._words("--patch_size 6 6 6 2 --img_size 12 12 12 4"),
    training=reproduction._words(_SPLIT),
    pretraining=reproduction._words(_SPLIT),
    files={},
)


def published_runs() -> dict[str, RunConfig]:
    """Every run of every table at the published size, its flags resolved."""
    study = Study(GRIDS["published"], ("--dataset_name", "HCP"), (1, 2, 3), Path("files"))
    for name in ("1", "2", "3", "scaling"):
        study.table(name)
    return {
        job.name: run_config(*parse_arguments(build_parser(), job.flags))
        for job in study.jobs.values()
    }


def appendix_b() -> dict[str, list[str]]:
    """The README's table of published hyper-parameters."""
    text = README[README.index("| published | Small | Base | Medium | Large |") :]
    rows = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_published_runs_have_the_published_hyper_parameters() -> None:
    table = appendix_b()
    variant = r"\| (?:\*\*)?(Small|Base|Medium|Large)\b[^|]*\| [^|]+ \| (\d+) \|"
    widths = dict(re.findall(variant, README))
    labels = dict(zip(("1.4M", "3.1M", "5.4M", "11.9M"), widths.items(), strict=True))
    assert len(labels) == 4
    runs = published_runs()
    for name, config in runs.items():
        label = next(one for one in labels if f"_{one}_" in name)
        column = list(widths).index(labels[label][0])
        assert config.model.embed_dim == int(labels[label][1]), name
        assert config.model.depth == 12 and config.model.patch_size == (6, 6, 6, 2)
        assert config.data.grid == (96, 96, 96) and config.data.sequence_length == 20
        assert config.optim.learning_rate == float(table["learning rate (AdamW)"][column])
        assert config.optim.optimizer == "AdamW" and config.optim.use_scheduler
        assert config.optim.weight_decay == float(table["weight decay"][column])
        schedule = table["schedule"][0]
        assert f"{config.optim.warmup:.0%}".replace("%", " %") + " warm-up" in schedule
        assert f"minimum {config.optim.min_lr_ratio:.0%}".replace("%", " %") in schedule
        epochs = table["epochs"][column] if config.pretrain else "30"  # README, "Downstream"
        assert config.trainer["max_epochs"] == int(epochs)
        assert (config.data.train_split, config.data.val_split) == (0.8, 0.1)
        assert config.trainer["precision"].startswith("bf16")


def test_tables_share_their_runs() -> None:
    study = Study(GRIDS["synthetic"], ("--dataset_name", "Dummy"), (1, 2, 3), None)
    one = study.table("1")
    assert [row.labels for row in one.rows][-1] == ("mamba", "brain")
    assert len(study.jobs) == 2 + 4 * 3  # two backbones
    study.table("2")
    second = len(study.jobs)
    assert second == 2 + 4 * 3 + 2 + 12 * 3
    three = study.table("3")
    assert len(study.jobs) == second  # nothing of its own
    assert [row.labels[0] for row in three.rows[:2]] == ["SwiFT", "NeuroSTORM"]
    study.table("scaling")
    assert len(study.jobs) == second + 1 + 3 * 3  # the largest backbone, three shares


@pytest.fixture
def tiny(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a reproduction of small runs in this process; the runs done are counted."""
    monkeypatch.setitem(reproduction.GRIDS, "synthetic", TINY)  # type: ignore[arg-type]
    done: list[str] = []

    def in_process(stage: str, command: tuple[str, ...]) -> None:
        if command[0] == "train":
            done.append(stage)
            if train(command[1:]) != 0:
                raise StageFailure(f"stage '{stage}' failed")

    monkeypatch.setattr(reproduction_run, "run_stage", in_process)
    flags = (
        f"--image_path {cli.store} --output_dir {cli.folder}/runs --paper_dir {cli.folder}/paper"
    )
    monkeypatch.setattr(reproduction_run, "DONE", done, raising=False)
    return flags.split()


def test_a_table_from_nothing_and_again(
    tiny: list[str], cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = reproduction_run.DONE  # type: ignore[attr-defined]
    words = ["--table", "1", "--seeds", "1", "2", *tiny]
    assert reproduce.main(words) == 0
    assert len(done) == 2 + 4 * 2
    paper = cli.folder / "paper"
    assert {p.suffix for p in paper.glob("table_1.*")} == {".md", ".tex", ".csv", ".json"}
    text = (paper / "table_1.md").read_text()
    assert "Synthetic data, tiny models" in text and "0.8628 ± 0.08" in text
    assert "less that of the row with tokens = all." in text and "nan" not in text
    record = json.loads((paper / "table_1.json").read_text())
    cell = next(row for row in record["rows"] if row["labels"] == ["linear", "brain"])
    areas = []
    for seed in (1, 2):
        scores = read_scores(
            cli.folder / f"runs/frozen_5.4M_linear_brain_seed{seed}/predictions.csv"
        )
        areas.append(roc_auc_score(scores.target, scores.score[:, 1]))
    assert cell["metrics"]["auroc"]["mean"] == pytest.approx(sum(areas) / 2, abs=1e-9)
    assert cell["seeds"] == [1, 2] and cell["width"] == 16 and cell["subjects"] == 4
    assert cell["difference"] is not None
    with open(paper / "table_1.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert all(len(row) == len(rows[0]) for row in rows) and len(rows) == 5

    # Again, and again after a kill: what has finished is not repeated.
    assert reproduce.main(words) == 0
    assert len(done) == 10
    killed = cli.folder / "runs" / "frozen_5.4M_mamba_all_seed2"
    before = (killed / "predictions.csv").read_text()
    for name in ("reproduced", "metrics.json", "predictions.csv"):
        (killed / name).unlink()
    assert reproduce.main(words) == 0
    assert done[10:] == ["frozen_5.4M_mamba_all_seed2"]
    assert (killed / "predictions.csv").read_text() == before
    # Another seed adds its runs. Runs of other settings are neither taken nor replaced.
    assert reproduce.main(["--table", "1", "--seeds", "1", "2", "3", *tiny]) == 0
    assert len(done) == 11 + 4
    capsys.readouterr()
    assert reproduce.main([*words, "--", "--weight_decay", "0.2"]) == 2
    assert "was made with other settings" in capsys.readouterr().err.splitlines()[-1]
    assert len(done) == 15 and (killed / "predictions.csv").read_text() == before


def test_what_exists_is_collected(tiny: list[str], cli: CommandLine) -> None:
    done: list[str] = reproduction_run.DONE  # type: ignore[attr-defined]
    assert reproduce.main(["--table", "3", "--job", "0", "--seeds", "1", *tiny]) == 0
    assert done == ["pretrain_3.1M_brain"]
    assert reproduce.main(["--table", "3", "--job", "2", "--seeds", "1", *tiny]) == 0
    assert reproduce.main(["--table", "3", "--collect", "--seeds", "1", *tiny]) == 0
    text = (cli.folder / "paper" / "table_3.md").read_text()
    assert len(done) == 2 and "not run" in text and "quoted" in text and "SwiFT" in text
    tex = (cli.folder / "paper" / "table_3.tex").read_text()
    assert tex.count("\\\\") == 5 and "SYNTHETIC" in tex and "70/15/15" in tex


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--table 4", "--table: unknown name '4'"),
        ("--table 1 --seeds 1 1", "--seeds: got [1, 1]"),
        ("--table 1 --dataset_name HCP", "--image_path: name the store"),
        (f"--table 1 {HCP} --checkpoints nowhere", "--checkpoints: 'nowhere' lacks 1M_E128.pt"),
        ("--table 1 --collect", "--output_dir: 'output/reproduce_Dummy' does not exist"),
        ("--table 1 --script lsf", "--script: unknown name 'lsf'"),
        ("--table 1 --script slurm", "--script: needs --image_path"),
        (f"--table 1 {HCP} --job 999", "--job: got 999, expected 0 to 13"),
        (f"--table 1 {HCP} --script slurm", "--image_path: no folder '/path/to/store'"),
        (f"--table 1 {HCP} --script slurm --job 1", "--job: each task of a --script has its own"),
        (f"--table 1 {HCP} -- --seed 7", "--seed: stands after --, but the tables choose it"),
        ("--table 1 --seeds -1", "--seeds: got [-1]"),
        (f"--table 1 {HCP} --job 5", "--job: frozen_5.4M_linear_brain_seed1 starts from"),
    ],
)
def test_mistakes(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(words.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_dry_run_shows_jobs_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(f"--table 1 {HCP} --checkpoints files --dry_run".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 + 2
    windows, epochs, flops = re.search(
        r"([\d,]+) windows x (\d+) epochs, (\S+) FLOPs", lines[0]
    ).groups()  # type: ignore[union-attr]
    assert int(windows.replace(",", "")) == 867 * 60 and epochs == "30" and float(flops) > 1e16
    assert lines[-2].startswith("12 jobs, ")


@pytest.mark.parametrize(("scheduler", "array"), [("slurm", "--array=2-13"), ("pbs", "-J 2-13")])
def test_array_jobs(
    scheduler: str, array: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From anywhere: their paths are absolute, since a job starts in the repository."""
    monkeypatch.chdir(tmp_path)
    Path("store").mkdir()
    words = f"--table 1 --dataset_name HCP --image_path store --script {scheduler}"
    assert (
        reproduce.main([*words.split(), "--output_dir", "runs", "--", "--accelerator", "gpu"]) == 0
    )
    assert "afterok:$backbones" in capsys.readouterr().out
    scripts = sorted(tmp_path.glob(f"runs/*.{scheduler}.sh"))
    assert [p.name.split(".")[0] for p in scripts] == ["reproduce_backbones", "reproduce_runs"]
    text = scripts[1].read_text()
    assert array in text and "-- --accelerator gpu" in text and "--script" not in text
    assert f"--image_path {tmp_path}/store --output_dir {tmp_path}/runs" in text
    assert all(subprocess.run(["bash", "-n", str(p)], check=False).returncode == 0 for p in scripts)
    # A single job is no array.
    assert reproduce.main([*words.replace("1", "3").split(), "--output_dir", "one"]) == 0
    single = Path(f"one/reproduce_backbones.{scheduler}.sh").read_text()
    assert "--job 0" in single and "--array" not in single and "#PBS -J" not in single
