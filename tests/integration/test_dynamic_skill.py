"""A pre-training that has not learned dynamics is reported at its end, and where it is used."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from neuromamba.commands.report import main as report
from neuromamba.commands.train import main as train
from neuromamba.fmamba.run_folder import RunFolder
from tests.helpers.flag_tests import MIM, NEXT, VOXELWISE
from tests.helpers.tiny import CommandLine

SENTENCE = "has not learned how the signal changes over time"
LONG = "--img_size 12 12 12 8 --stride_between_seq 0.25 --max_epochs 12 --learning_rate 1e-2"


def test_anatomy_alone_is_reported(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    done = cli.run(NEXT)
    skill = done.written["val/dynamic_skill"]
    assert skill < 0 and done.written["val/skill"] < 0
    assert 0 < done.written["val/anatomy_share"] < 1
    lines = [line for line in capsys.readouterr().out.splitlines() if SENTENCE in line]
    assert len(lines) == 1 and f"{skill:.2f}" in lines[0]
    assert "--input_scaling_method voxelnorm_zeroback" in lines[0]
    for name in ("best", "last"):
        recorded = done.checkpoint(name)["neuromamba"]["dynamic_skill"]
        assert recorded == pytest.approx(skill, rel=1e-6)
    best = done.folder / "checkpoints" / "best.ckpt"
    for flags in ("", "--freeze_feature_extractor"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "neuromamba"):
            cli.run(f"--load_model_path {best} {flags}")
        (record,) = [r for r in caplog.records if SENTENCE in r.getMessage()]
        assert f"{skill:.2f}" in record.getMessage() and str(best) in record.getMessage()
    assert report([str(done.folder)]) == 0
    html = (done.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert f"Dynamic skill {skill:.3f}" in html and "Anatomy share" in html


def test_dynamics_that_are_learned(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny runs are sines; once each voxel has its own scale, a few steps predict them."""
    done = cli.run(f"{NEXT} {VOXELWISE} {LONG}")
    assert done.written["val/dynamic_skill"] > 0.15
    assert SENTENCE not in capsys.readouterr().out
    assert (cli.store / "voxel_statistics").is_dir(), "the store has none in its files"
    with caplog.at_level(logging.WARNING, "neuromamba"):
        tested = cli.run(
            f"--load_model_path {done.folder}/checkpoints/best.ckpt --img_size 12 12 12 8"
        )
    assert SENTENCE not in caplog.text and math.isfinite(tested.written["test/auroc"])


def test_scaling_statistics_belong_to_the_checkpoint(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are taken from it, and others are refused; with other scalings they do nothing."""
    done = cli.run(f"{NEXT} {VOXELWISE} --scaling_statistics window")
    assert not (cli.store / "voxel_statistics").exists()
    best = done.folder / "checkpoints" / "best.ckpt"
    tuned = cli.run(f"--load_model_path {best}")
    config = (tuned.folder / "config.yaml").read_text()
    assert "scaling_statistics: window" in config and "voxelnorm_zeroback" in config
    for flags, text in (
        (f"--load_model_path {best} --scaling_statistics run", "trained with window"),
        ("--scaling_statistics window", "only used with --input_scaling_method voxelnorm_zeroback"),
        (f"{VOXELWISE} --scaling_statistics windows", "Did you mean 'window'"),
    ):
        assert train(cli.argv(flags)) == 2
        message = capsys.readouterr().err
        assert "--scaling_statistics" in message and text in message


def test_masked_tokens_have_no_steps(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    """The token before a hidden one may be hidden: no skill is reported, and no warning."""
    done = cli.run(MIM)
    assert "val/dynamic_skill" not in done.written and "val/skill" not in done.written
    assert done.checkpoint("best")["neuromamba"]["dynamic_skill"] is None
    assert SENTENCE not in capsys.readouterr().out
    assert report([str(done.folder)]) == 0
    html = (done.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "Dynamic skill not defined" in html


def test_older_names_are_read_as_what_they_meant(tmp_path: Path) -> None:
    """``val/skill`` of an earlier version compared with the previous token of the sequence."""
    (tmp_path / "metrics.json").write_text('{"val/loss": 1.0, "val/skill": 0.51}')
    assert RunFolder(tmp_path).metrics == {"val/loss": 1.0, "val/sequence_skill": 0.51}
    text = '{"val/skill": -2.0, "val/sequence_skill": 0.5, "val/dynamic_skill": null}'
    (tmp_path / "metrics.json").write_text(text)
    found = RunFolder(tmp_path).metrics
    assert found["val/skill"] == -2.0 and math.isnan(found["val/dynamic_skill"])
