"""neuromamba report: every kind of run, compared runs, and what the page holds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from neuromamba.commands.report import main as report
from neuromamba.commands.train import main as train
from tests.helpers.flag_tests import AGE, NEXT, write_tables
from tests.helpers.tiny import CommandLine, Finished

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
    (tmp_path / "p.html").write_text(page_of(done).replace("</body>", click), encoding="utf-8")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--dump-dom", str(tmp_path / "p.html")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr
    subjects = re.findall(r">(sub-\d\d)</a>", shown.stdout)
    assert subjects == sorted(subjects) and len(subjects) == 10


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json: damaged. Restore it"),
        ("evaluation.json", "torn", "evaluation.json: damaged. Restore it"),
        ("config.yaml", "", "config.yaml: damaged, it lacks batch_size"),
        ("config.yaml", None, "no run folder, it has no config.yaml"),
        ("predictions.csv", "half", "the run's data 4 test subjects, 2 of them the same"),
    ],
)
def test_damaged_runs(
    cli: CommandLine, file: str, content: str | None, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    done = cli.run()
    path = done.folder / file
    if content == "half":
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[: len(lines) // 2 + 1]) + "\n")
    elif content is None:
        path.unlink()
    else:
        path.write_text(content)
    capsys.readouterr()
    assert report([str(done.folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_that_tested_only(cli: CommandLine) -> None:
    done = cli.run(FLAGS)
    words = f"--test_only --test_ckpt_path {done.folder} --output_dir tested --accelerator cpu"
    assert train(words.split()) == 0
    assert report(["tested"]) == 0
    html = Path("tested/report/report.html").read_text(encoding="utf-8")
    assert f"{done.written['test/auroc']:.3f} [" in html and "FC" in html
