"""neuromamba report: every kind of run, compared runs, and what the page holds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from neuromamba.commands.report import main as report
from neuromamba.commands.train import main as train
from neuromamba.common.csv_cells import CsvWriter, csv_records
from neuromamba.pages.policy import policy
from tests.helpers.flag_tests import AGE, NEXT, write_tables
from tests.helpers.tiny import CommandLine, Finished, write_tiny_run

FLAGS = "--log_every_n_steps 1 --max_epochs 2"


def page_of(done: Finished) -> str:
    return (done.folder / "report" / "report.html").read_text(encoding="utf-8")


def check_page(html: str, folder: Path) -> None:
    """One file without network, whose links lead somewhere; each figure is there for a paper."""
    text = re.sub(r"base64,[^\"]+", "", html)
    assert re.findall(r"https?://|<link|@import|url\(|src=\"(?!data:)", text) == []
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert links <= set(re.findall(r'<figure[^>]* id="([^"]+)"', text))
    figures = folder / "report" / "figures"
    assert {p.stem for p in figures.glob("*.png")} == {p.stem for p in figures.glob("*.pdf")}
    pictures = [*figures.glob("*.png"), *figures.glob("subjects/*.png")]
    assert text.count("<img") == len(pictures)


def test_a_classification_beside_another_seed(cli: CommandLine) -> None:
    write_tables(cli)
    split = "--train_split 0.3 --val_split 0.2"
    one = cli.run(f"{FLAGS} {split} --adjust_thresh --confounds skew")
    two = cli.run(f"{FLAGS} {split} --seed 4")
    assert report([str(one.folder), str(two.folder)]) == 0
    html = page_of(one)
    check_page(html, one.folder)
    for text in (
        "FC",
        "mean volume",
        "majority",
        "untrained backbone",
        "Over runs",
        "Threshold",
        "Confounds",
        "± ",
    ):
        assert text in html, text
    assert f"{one.written['test/auroc']:.3f} [" in html
    subjects = re.findall(r">(sub-\d\d)<", html)
    assert len(subjects) == 10 == html.count('href="#subject-')
    worst = [float(p) for p in re.findall(r'<td class="number">(\d\.\d{3})</td></tr>', html)][-10:]
    assert worst == sorted(worst)
    assert {p.name for p in (one.folder / "baselines").iterdir()} >= {"baselines.json", "fc.csv"}
    # The next call finds the baselines; a run tested on others is set apart.
    before = (one.folder / "baselines" / "baselines.json").stat().st_mtime_ns
    three = cli.run(f"{FLAGS} {split} --dataset_split_num 2")
    assert report([str(one.folder), str(three.folder), "--output", "elsewhere"]) == 0
    assert (one.folder / "baselines" / "baselines.json").stat().st_mtime_ns == before
    assert "Other subjects" in Path("elsewhere/report.html").read_text(encoding="utf-8")


def test_a_regression(cli: CommandLine) -> None:
    done = cli.run(f"{AGE} {FLAGS}")
    assert report([str(done.folder)]) == 0
    html = page_of(done)
    check_page(html, done.folder)
    assert "Pearson r" in html and "Ridge regression" in html and "scatter" in html


def test_three_classes_of_events(cli: CommandLine) -> None:
    write_tables(cli)
    events = "onset\tduration\ttrial_type\n0\t8\tface\n8\t8\thouse\n16\t8\tshoe\n"
    (cli.folder / "events.tsv").write_text(events)
    done = cli.run(f"{FLAGS} --events events.tsv")
    assert report([str(done.folder)]) == 0
    html = page_of(done)
    check_page(html, done.folder)
    assert "mean volume, SVM" in html and "each class against all others" in html


def test_pre_training(cli: CommandLine) -> None:
    one, two = cli.run(f"{NEXT} {FLAGS}"), cli.run(f"{NEXT} {FLAGS} --seed 1")
    assert report([str(one.folder), str(two.folder)]) == 0
    html = page_of(one)
    check_page(html, one.folder)
    assert "skill" in html and "repeat the previous token" in html


def test_mistakes(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    task, pretrained = cli.run(), cli.run(NEXT)
    cases = [
        (["nowhere"], "nowhere"),
        ([str(task.folder), str(pretrained.folder)], "RUN_DIR: runs of different kinds"),
        ([str(task.folder), str(task.folder)], "RUN_DIR: two runs have the name"),
        ([str(task.folder), "--image_path", "a", "b"], "--image_path: got 2 folder(s)"),
        ([str(task.folder), "--fc_atlas", "none.nii.gz"], "--fc_atlas: none.nii.gz: cannot be"),
    ]
    for words, message in cases:
        assert report(words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_moved_store_and_a_changed_split(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    done = cli.run(FLAGS)
    moved = cli.folder / "moved"
    shutil.move(cli.store, moved)
    assert report([str(done.folder)]) == 2
    assert report([str(done.folder), "--image_path", str(moved)]) == 0
    split = moved / "splits" / "split_fixed_1.txt"
    lines = split.read_text().splitlines()
    first, second = lines.index("train_subjects") + 1, lines.index("test_subjects") + 1
    lines[first], lines[second] = lines[second], lines[first]
    split.write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert report([str(done.folder), "--image_path", str(moved)]) == 2
    assert "is not that of" in capsys.readouterr().err.splitlines()[-1]


def test_in_a_browser(cli: CommandLine, tmp_path: Path) -> None:
    """No error on the console, and a click sorts."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    done = cli.run(f"{FLAGS} --train_split 0.3 --val_split 0.2")
    assert report([str(done.folder), "--no-baselines"]) == 0
    click = '<script>document.querySelector("table.sortable th button").click()</script></body>'
    # The page's policy admits its own script only.
    (source,) = re.findall(
        "script-src ('[^']*')", policy([], [re.sub("</?(script|body)>", "", click)])
    )
    html = page_of(done).replace("script-src ", f"script-src {source} ")
    (tmp_path / "p.html").write_text(html.replace("</body>", click), encoding="utf-8")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--dump-dom", str(tmp_path / "p.html")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr
    subjects = re.findall(r">(sub-\d\d)</a>", shown.stdout)
    assert subjects == sorted(subjects) and len(subjects) == 10


DAMAGED: list[tuple[str, str | bytes | None, str]] = [
    ("metrics.json", "{", "metrics.json: damaged. Restore it"),
    ("evaluation.json", "torn", "evaluation.json: damaged. Restore it"),
    ("config.yaml", "", "config.yaml: damaged, it lacks batch_size"),
    ("config.yaml", None, "no run folder, it has no config.yaml"),
    ("predictions.csv", "half", "the run's data 4 test subjects, 2 of them the same"),
    ("subjects.csv", "half", "subjects.csv: has 0 test subjects, and predictions.csv beside"),
    ("subjects.csv", "", "subjects.csv: has 0 test subjects"),
    ("subjects.csv", "part,subject,target\ntest,sub-01,x\n", "subjects.csv: damaged."),
    ("subjects.csv", "part,person\ntest,sub-01\n", "subjects.csv: damaged. Restore it"),
    ("subjects.csv", "part,subject,target\ntest\n", "subjects.csv: damaged. Restore it"),
    ("subjects.csv", b"\xff\xfe\x00", "subjects.csv: damaged. Restore it"),
    ("logs/metrics.csv", "step,train/loss\nx,1\n", "metrics.csv: damaged. Restore it"),
    ("logs/metrics.csv", "step,train/loss\n1,much\n", "metrics.csv: damaged. Restore it"),
    ("logs/metrics.csv", "train/loss\n1\n", "metrics.csv: damaged. Restore it"),
    ("logs/metrics.csv", "step,train/loss\n1e99,1\n", "metrics.csv: damaged. Restore it"),
    ("logs/metrics.csv", b"step,train/loss\n\xff,1\n", "metrics.csv: damaged. Restore it"),
    ("logs/metrics.csv", '"' + "x" * 200_000, "metrics.csv: damaged. Restore it"),
    ("metrics.json", "[" * 100_000, "metrics.json: damaged. Restore it"),
    ("metrics.json", '{"train/steps": "many"}', "metrics.json: damaged. Restore it"),
]


def test_damaged_runs(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file that a page needs or stands beside is named, and no page is written."""
    done = cli.run()
    for file, content, message in DAMAGED:
        path = done.folder / file
        before = path.read_bytes()
        if content == "half":
            lines = path.read_text().splitlines()
            path.write_text("\n".join(lines[: len(lines) // 2 + 1]) + "\n")
        elif content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        capsys.readouterr()
        assert report([str(done.folder), "--no-baselines"]) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        path.write_bytes(before)
    assert not list(done.folder.glob("report/**/*.png"))  # nothing was drawn, either
    assert not (done.folder / "report" / "report.html").exists()
    assert report([str(done.folder), "--no-baselines"]) == 0


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/*"])
def test_a_run_without_a_checkpoint(
    cli: CommandLine, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = cli.run()
    for path in done.folder.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    assert report([str(done.folder), "--no-baselines"]) == 2
    error = capsys.readouterr().err
    assert "no checkpoint" in error and "finished run" in error and error.count("\n") == 1


# Ids that are unusual, but names: each of them must come through as what it is.
IDS = [
    "<script>alert(1)<_script>",
    "<img src=x onerror=alert(1)>",
    "=1+1",
    "@SUM(A1)",
    "'=x",
    "-sub",
    "a\u202eb",
    "a\u200bb",
    'a,b;c"d',
    "x" * 150,
    "{{7*7}}",
    "%s%n",
    "$(touch made)",
    "..",
    "END",
    "Müller 被験者",
]


def test_hostile_names_of_subjects(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    names = [*IDS, *(f"sub-{i}" for i in range(len(IDS), 20))]
    table = cli.store / "metadata" / "participants.csv"
    with open(table, "w", newline="", encoding="utf-8") as stream:
        writer = CsvWriter(stream)
        writer.writerow(["subject", "sex"])
        for i, name in enumerate(names):
            write_tiny_run(cli.store / "hdf5" / f"sub-{i + 1:02d}.h5", name, i)
            writer.writerow([name, "FM"[i % 2]])
    done = cli.run("--train_split 0.3 --val_split 0.2 --max_epochs 1")
    assert report([str(done.folder), "--no-baselines"]) == 0
    html = page_of(done)
    for text in ("<script>alert", "<img src=x", "\u202e", "\u200b"):
        assert text not in html, text
    with open(done.folder / "subjects.csv", newline="", encoding="utf-8") as stream:
        found = {row["subject"] for row in csv_records(stream)}
    # They are joined with labels and split by what they are, also after files were read again.
    assert found <= set(names) and len(found) == 14
    shown = [name for name in found if "&" not in name and name.isascii() and name.isalnum()]
    assert all(name in html for name in shown)
    for line in (done.folder / "subjects.csv").read_text(encoding="utf-8").splitlines():
        assert line.split(",")[1].strip('"')[:1] not in "=+-@"
    assert not Path("made").exists() and "Traceback" not in capsys.readouterr().err


def test_a_run_that_tested_only(cli: CommandLine) -> None:
    done = cli.run(FLAGS)
    words = f"--test_only --test_ckpt_path {done.folder} --output_dir tested --accelerator cpu"
    assert train(words.split()) == 0
    assert report(["tested"]) == 0
    html = Path("tested/report/report.html").read_text(encoding="utf-8")
    assert f"{done.written['test/auroc']:.3f} [" in html and "FC" in html
