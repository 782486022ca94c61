"""``--precision bf16`` on CPUs with and without instructions for it, and from one to the other."""

from __future__ import annotations

import pytest

from neuromamba.commands.train import main
from tests.helpers.tiny import CommandLine

SWITCH = "NEUROMAMBA_BF16"


@pytest.mark.parametrize("head", ["linear", "mamba"])
def test_on_a_slow_cpu_it_is_fp32(
    cli: CommandLine, head: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--downstream_task sex --clf_head_version {head}"
    plain = cli.run(flags).metrics
    monkeypatch.setenv(SWITCH, "0")
    capsys.readouterr()
    narrow = cli.run(f"{flags} --precision bf16").metrics
    said = capsys.readouterr().out
    assert said.count("computed in fp32, which is faster here") == 1
    names = [name for name in plain if "loss" in name]
    assert names and all(narrow[name] == plain[name] for name in names)
    monkeypatch.setenv(SWITCH, "1")
    assert cli.run(f"{flags} --precision bf16").metrics["train/loss"] != plain["train/loss"]


@pytest.mark.parametrize(("first", "then"), [("1", "0"), ("0", "1"), ("1", "1"), ("0", "0")])
def test_a_resumed_run_may_cross_machines(
    cli: CommandLine,
    first: str,
    then: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--pretraining --use_autoregressive --precision bf16 --output_dir crossed"
    monkeypatch.setenv(SWITCH, first)
    assert main(cli.argv(f"{flags} --max_steps 2 --max_epochs 2")) == 0
    monkeypatch.setenv(SWITCH, then)
    capsys.readouterr()
    more = f"{flags} --max_epochs 2 --max_steps 2 --resume_ckpt_path last"
    assert main(cli.argv(more)) == 0
    said = capsys.readouterr().out
    names = {"1": "bf16-mixed", "0": "32-true"}
    if first == then:
        assert "the steps so far were computed in" not in said
    else:
        assert f"the steps so far were computed in {names[first]} on " in said
        assert f"the next in {names[then]} on " in said
