"""``--channels anatomy dynamics``: trained, fine-tuned, probed, exported, resumed, refused."""

from __future__ import annotations

import json

import pytest
import torch

from neuromamba.commands.export import main as export
from neuromamba.commands.probe import run as probe
from neuromamba.commands.train import main as train
from neuromamba.fmamba.module import FMambaModule
from tests.helpers.flag_tests import MIM, NEXT, VOXELWISE, first_batch
from tests.helpers.tiny import CommandLine

BOTH = f"{VOXELWISE} --channels anatomy dynamics"


def test_from_pre_training_to_probe(cli: CommandLine) -> None:
    """The checkpoint says that there are two channels, and every later step takes that from it."""
    done = cli.run(f"{NEXT} {BOTH} --scaling_statistics window --learning_rate 1e-2")
    assert done.checkpoint("best")["neuromamba"]["model"]["anatomy"] is True
    weights = done.checkpoint("best")["state_dict"]["model.embedder.anatomy"]
    assert weights.shape == (216, 16)
    best = done.folder / "checkpoints" / "best.ckpt"
    for flags in ("", "--freeze_feature_extractor"):
        tuned = cli.run(f"--load_model_path {best} {flags}")
        config = (tuned.folder / "config.yaml").read_text()
        assert "- anatomy" in config and "scaling_statistics: window" in config
        kept = torch.equal(tuned.checkpoint()["state_dict"]["model.embedder.anatomy"], weights)
        assert kept == bool(flags)
    exported = cli.folder / "both.safetensors"
    assert export([str(tuned.folder), str(exported)]) == 0
    tested = cli.run(f"--test_only --test_ckpt_path {exported}")
    for name in ("test/auroc", "test/loss"):
        assert tested.written[name] == pytest.approx(tuned.written[name], abs=1e-6)
    rows = cli.folder / "rows.json"
    quick = "--pools mean --blocks 0 --labels 2 --draws 2"
    probe([str(done.folder), "--json", str(rows), *quick.split()])
    assert {row["model"] for row in json.loads(rows.read_text())} >= {"pretrained", "untrained"}


@pytest.mark.parametrize("objective", [NEXT, f"{NEXT} --token_order space_first", MIM])
def test_resumed_as_undisturbed(cli: CommandLine, objective: str) -> None:
    extra = f"{objective} {BOTH} --every_n_train_steps 4 --num_workers 1 --max_epochs 2"
    straight = cli.run(extra)
    (middle,) = (straight.folder / "checkpoints").glob("*step=4.ckpt")
    resumed = cli.run(f"{extra} --resume_ckpt_path {middle}")
    for key, value in straight.checkpoint()["state_dict"].items():
        assert torch.equal(value, resumed.checkpoint()["state_dict"][key]), key
    one = f"{objective} {VOXELWISE} --every_n_train_steps 4 --num_workers 1 --max_epochs 2"
    assert train(cli.argv(f"{one} --resume_ckpt_path {middle}")) == 2


def test_tokens_are_those_of_one_channel(cli: CommandLine) -> None:
    """The mean image changes neither the tokens nor the targets."""
    packed = []
    for extra in (f"{NEXT} {VOXELWISE}", f"{NEXT} {BOTH}"):
        module = cli.module(extra)
        assert isinstance(module, FMambaModule)
        planned = module.on_before_batch_transfer(first_batch(cli.loaders(extra)), 0)
        packed.append(module.pack(planned))
    one, both = packed
    assert torch.equal(one.tokens, both.tokens) and one.lengths == both.lengths
    assert one.anatomy is None and both.anatomy is not None
    assert both.anatomy.shape == (len(both.tokens) // 2, 216)
    assert both.anatomy.std() > 0.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--channels anatomy dynamics", "only used with --input_scaling_method voxelnorm_zeroback"),
        (f"{VOXELWISE} --channels anatomy", "expected 'dynamics' or 'anatomy dynamics'"),
        (f"{VOXELWISE} --channels anatomy dynamic", "Did you mean 'dynamics'"),
        (f"{BOTH} --augment_during_training", "leave one of them out"),
    ],
)
def test_refused(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert train(cli.argv(f"{NEXT} {flags}")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --") and "--channels" in error and message in error


def test_a_checkpoint_of_one_channel_takes_no_second(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    best = cli.run(f"{NEXT} {VOXELWISE}").folder / "checkpoints" / "best.ckpt"
    assert train(cli.argv(f"--load_model_path {best} --channels anatomy dynamics")) == 2
    assert "--channels: got ['anatomy', 'dynamics']" in capsys.readouterr().err
