"""Figures and the HTML page, from hand-made run folders and volumes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from neuromamba.common.errors import UserInputError
from neuromamba.common.stages import Pipeline, Stage, StageFailure
from neuromamba.config.model import ModelConfig
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.writer import write_run
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.pages.figures import confusion_figure, roc_figure, save_figure
from neuromamba.pages.page import Page, Picture, Section, Table, render, wrap_command
from neuromamba.pages.tables import metrics_table, time_table, version_table
from neuromamba.reports.brain_figures import (
    NextTokenExample,
    kept_patches,
    next_token_figure,
    slice_image,
    token_mask,
    token_mask_figure,
)
from neuromamba.reports.training_curves import downstream_curves, pretraining_curves

SCORES = SubjectScores(
    ("a", "b", "c", "d"),
    np.array([0, 0, 1, 1]),
    np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]),
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder as training leaves it, without a checkpoint."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text(
        "epoch,step,train/loss,val/auroc,val/loss,val/mean_token_loss,val/persistence_loss\n"
        "0,9,3.0,,,,\n0,9,,0.95,2.5,4.0,1.5\n1,19,1.2,,,,\n1,19,,0.9,1.1,4.0,1.5\n"
        "2,20,,0.9,1.1,4.0,1.5\n"  # the last validation, with the best weights
    )
    (tmp_path / "metrics.json").write_text('{"train/steps": 20.0, "test/auroc": null}')
    (tmp_path / "predictions.csv").write_text(
        "subject,window,target,prob_0,prob_1\ns1,0,1,0.2,0.8\ns1,1,1,0.4,0.6\ns2,0,0,0.9,0.1\n"
    )
    return RunFolder(tmp_path)


# ------------------------------------------------------------------------------ run folders


def test_run_folder_is_read(run: RunFolder) -> None:
    steps, values = run.curve("val/loss")
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [2.5, 1.1]
    assert run.curve("never/logged")[0].size == 0
    assert np.isnan(run.metrics["test/auroc"])
    scores = run.scores()
    assert scores.subjects == ("s1", "s2")
    assert scores.target.tolist() == [1, 0]
    np.testing.assert_allclose(scores.score, [[0.3, 0.7], [0.9, 0.1]])


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="finished run"):
        _ = RunFolder(tmp_path).metrics
    with pytest.raises(UserInputError, match="no run folder"):
        _ = RunFolder(tmp_path).checkpoint
    (tmp_path / "config.yaml").write_text("seed: 0\nembed_dim: 16\nbatch_size: 4\n")
    with pytest.raises(UserInputError, match="no checkpoint"):
        _ = RunFolder(tmp_path).checkpoint


# ------------------------------------------------------------------------------ figures


def test_every_figure_is_a_picture(run: RunFolder, tmp_path: Path) -> None:
    figures = {
        "pre": pretraining_curves(run),
        "fine": downstream_curves(run),
        "roc": roc_figure({"model": SCORES, "control": SCORES}, "male"),
        "confusion": confusion_figure(SCORES, ("female", "male")),
    }
    for name, figure in figures.items():
        path = save_figure(figure, tmp_path / "figures" / f"{name}.png")
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 5000
    texts = [text.get_text() for text in figures["roc"].axes[0].get_legend().get_texts()]
    assert texts[0] == "model: 1.000"
    cells = [text.get_text() for text in figures["confusion"].axes[0].texts]
    assert cells == ["1\n50 %", "1\n50 %", "0\n0 %", "2\n100 %"]


def test_curves_show_the_controls_and_the_chosen_epoch(run: RunFolder) -> None:
    labels = [line.get_label() for line in pretraining_curves(run).axes[0].lines]
    assert "repeat the previous token (1.5)" in labels
    assert "predict the mean token (4)" in labels
    upper = downstream_curves(run).axes[0]
    star = next(line for line in upper.lines if "chosen" in str(line.get_label()))
    # By the loss, as best.ckpt is, although the AUROC was higher before.
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (20, 1.1)


def test_roc_needs_two_classes() -> None:
    three = SubjectScores(("a",), np.array([2]), np.array([[0.2, 0.3, 0.5]]))
    with pytest.raises(UserInputError, match="two classes"):
        roc_figure({"model": three})


def test_slices_are_neither_mirrored_nor_transposed() -> None:
    """One bright voxel at the subject's left, front and top, in LAS order."""
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [8, -6, -4]
    volume = np.zeros((9, 7, 5))
    bright = np.round(np.linalg.inv(affine) @ [-8, 6, 4, 1])[:3].astype(int)
    volume[tuple(bright)] = 1
    x, y, z = bright
    axial = slice_image(volume, 2, z)
    assert axial.shape == (7, 9)
    assert np.argwhere(axial).tolist() == [[6, 0]]  # top row (front), first column (left)
    coronal = slice_image(volume, 1, y)
    assert coronal.shape == (5, 9)
    assert np.argwhere(coronal).tolist() == [[4, 0]]  # top row (superior), first column (left)
    sagittal = slice_image(volume, 0, x)
    assert sagittal.shape == (5, 7)
    assert np.argwhere(sagittal).tolist() == [[4, 6]]  # top row, last column (front)


def test_dropped_tokens_are_marked(tmp_path: Path) -> None:
    config = ModelConfig(img_size=(4, 6, 4, 2), patch_size=(2, 2, 2, 2), embed_dim=8)
    mask = np.zeros((4, 6, 4), dtype=bool)
    mask[:2, :5] = True  # half of the patches along x; all along y and z
    vox = np.flatnonzero(mask).astype(np.int32)
    assert kept_patches(vox, config).sum() == 6
    frames = np.random.default_rng(0).normal(100, 1, (4, vox.size)).astype(np.float32)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    path = tmp_path / "run.h5"
    write_run(
        path, frames, vox, grid=(4, 6, 4), affine=affine, source=RunSource(subject="s", tr=2.0)
    )
    tokens = token_mask(path, config)
    assert tokens.share == 0.5
    assert tokens.kept[:2].all()
    assert not tokens.kept[2:].any()
    np.testing.assert_array_equal(np.isfinite(tokens.mean), mask)
    np.testing.assert_allclose(tokens.mean[mask], frames.mean(0), atol=1e-3)
    figure = token_mask_figure(tokens)
    assert "50.0%" in figure.get_suptitle()
    # Right half of the coronal and axial pictures: x = 0, 1 is the subject's right.
    for axes in figure.axes[1:3]:
        assert {patch.get_x() for patch in axes.patches} == {-0.5}


def test_next_token_figure_marks_what_is_never_predicted() -> None:
    rng = np.random.default_rng(0)
    target, predicted = rng.normal(size=(2, 4, 6, 4))
    target[:2, :2], predicted[:2, :2] = np.nan, np.nan  # background
    predicted[2:, :2, :2] = np.nan  # the first token of the sample
    mask = np.isfinite(target)
    mask[..., 2:] = False
    example = NextTokenExample("s", 3, 20, target, predicted, target * 0.5, mask, (2, 2, 2))
    figure = next_token_figure(example)
    assert [len(axes.patches) for axes in figure.axes[:3]] == [1, 2, 2]
    assert "frame 4 of 20" in figure.get_suptitle()
    limits = {axes.images[0].get_clim() for axes in figure.axes[:3]}
    assert len(limits) == 1  # one colour scale


# ------------------------------------------------------------------------------ page


def test_page_is_one_escaped_file(tmp_path: Path) -> None:
    picture = save_figure(Figure(), tmp_path / "figure.png")
    page = Page(
        "A <title>",
        ("A & B.",),
        (
            Section(
                "Part",
                ("Text",),
                tables=(Table([("<script>", "1")], ("x", "y"), numbers=(1,)), version_table()),
                pictures=(Picture(picture, "caption", 'alt "text"'),),
                code="a && b",
            ),
        ),
        "notice",
    )
    html = render(page)
    assert "A &lt;title&gt;" in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "a &amp;&amp; b" in html
    assert re.findall(r"(?:https?:)?//[\w.]+", html.split("base64,")[0]) == []
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{100,}"', html)) == 1
    assert 'name="viewport"' in html


def test_metrics_table_compares_like_with_like() -> None:
    same = SCORES._replace(subjects=SCORES.subjects)
    table = metrics_table({"model": SCORES, "control": same}, ("female", "male"))
    label, *cells, difference = table.rows[0]
    assert label == "model" and difference == ""
    assert [cell.split(" ")[0] for cell in cells] == ["1.000", "0.750", "0.750"]
    assert table.rows[1][-1] == "0.000 [not defined]"
    assert "2 female, 2 male" in table.note
    other = SCORES._replace(subjects=("a", "b", "c", "x"))
    with pytest.raises(UserInputError, match="same subjects"):
        metrics_table({"model": SCORES, "control": other}, ("female", "male"))


def test_times_add_up() -> None:
    assert time_table({"a": 1.25, "b": 2.5}).rows[-1] == ("together", "3.8")


def test_wrapped_commands_are_the_same_commands() -> None:
    command = "echo " + " ".join(f"--flag_{i} value_{i}" for i in range(20))
    wrapped = wrap_command(command)
    assert max(map(len, wrapped.splitlines())) <= 92
    shell = subprocess.run(["bash", "-c", wrapped], capture_output=True, text=True, check=True)
    assert shell.stdout.split() == command.split()[1:]


# ------------------------------------------------------------------------------ stages


def _stages(folder: Path) -> dict[str, Stage]:
    return {
        "a": Stage(name="a", makes=(folder / "a",), settings="1"),
        "b": Stage(name="b", makes=(folder / "b",), settings="1", after=("a",)),
        "c": Stage(name="c", makes=(folder / "c",), settings="1"),
    }


def _do(folder: Path, **settings: str) -> list[str]:
    """Do the stages, some with other settings; returns those that were really done."""
    done: list[str] = []
    pipeline = Pipeline(folder, "record.json")
    for name, stage in _stages(folder).items():

        def work(name: str = name) -> None:
            assert not (folder / name).exists()
            (folder / name).mkdir()
            (folder / name / "result").touch()
            done.append(name)

        chosen = settings.get(name, stage.settings)
        pipeline.do(Stage(name=name, makes=stage.makes, settings=chosen, after=stage.after), work)
    return done


def test_finished_stages_are_skipped_and_changed_ones_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert _do(folder) == ["a", "b", "c"]
    assert _do(folder) == []
    assert _do(folder, c="2") == ["c"]
    assert _do(folder, c="2", a="2") == ["a", "b"]
    (folder / "b" / "result").unlink()
    (folder / "b").rmdir()
    assert _do(folder, c="2", a="2") == ["b"]
    assert json.loads((folder / "record.json").read_text())["stages"].keys() == {"a", "b", "c"}


def test_a_failed_stage_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def fail() -> None:
        (folder / "a").mkdir()
        raise StageFailure("stage 'a' failed")

    with pytest.raises(StageFailure):
        Pipeline(folder, "record.json").do(_stages(folder)["a"], fail)
    assert _do(folder) == ["a", "b", "c"]


def test_a_folder_of_others_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserInputError, match="something else"):
        Pipeline(tmp_path, "record.json")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserInputError, match="damaged"):
        Pipeline(tmp_path, "record.json")
    with pytest.raises(UserInputError, match="cannot write"):
        Pipeline(tmp_path / "thesis.tex" / "below", "record.json")


def test_many_files_of_a_command_are_wrapped_too() -> None:
    """Between words, not within quotes; a shell reads the same words."""
    files = [f"/data/derivatives/sub-{i:02d}_task-rest_bold.nii.gz" for i in range(7)]
    command = shlex.join(["neuromamba", "predict", "run", *files, "a b' c.nii.gz", "-o", "out"])
    wrapped = wrap_command(f"{command} --tr 2")
    assert max(map(len, wrapped.split("\n"))) <= 92
    assert shlex.split(wrapped.replace("\\\n", "")) == [*shlex.split(command), "--tr", "2"]


def test_rows_become_lists_where_a_narrow_screen_would_break_words() -> None:
    """Beside their heads where there are many, below them where they are long texts."""
    text = "the scan was resampled in time, and is trusted less"
    assert Table([("a", "1")], ("name", "value")).on_phones == ""
    assert Table([(text, text)], ("name", "value")).on_phones == ""
    assert Table([("a", "1", "2")], ("name", "value", "other")).on_phones == ""
    assert Table([("a", text, "none")], ("scan", "done", "doubts")).on_phones == "texts"
    assert Table([("a", "1", "2", "3")], ("a", "b", "c", "d")).on_phones == "many"
    assert Table([(text, *"12345")], tuple("abcdef")).on_phones == "many"
    page = Page("t", (), [Section("s", tables=[Table([("a", text, "none")], ("x", "y", "z"))])])
    shown = render(page)
    assert ' texts">' in shown and 'data-head="z"' in shown
