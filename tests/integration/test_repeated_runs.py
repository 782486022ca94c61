"""The same command twice, checkpoints, resuming, fine-tuning and LoRA."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.commands.train import main, run
from neuromamba.fmamba.module import FMambaModule
from tests.helpers.flag_tests import (
    AGE,
    AUGMENT,
    MIM,
    NEXT,
    comparable,
    loss,
    predictions,
    shows,
)
from tests.helpers.tiny import CommandLine, Finished


def test_the_same_command_twice(cli: CommandLine) -> None:
    extra = "--dropout 0.2 --max_epochs 2"
    first, second, other = cli.run(extra), cli.run(extra), cli.run(f"{extra} --seed 2")
    assert comparable(first.written) == comparable(second.written)
    text = [(done.folder / "predictions.csv").read_bytes() for done in (first, second, other)]
    assert text[0] == text[1] != text[2]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.parametrize("extra", ["", AGE, NEXT, MIM])
def test_checkpoints_hold_plain_containers(cli: CommandLine, extra: str) -> None:
    done = cli.run(extra)
    for name in ("best", "last"):
        metadata = done.checkpoint(name)["neuromamba"]
        assert plain(metadata)
        assert metadata["orientation"] == "LAS"
        assert metadata["model"]["embed_dim"] == 16
        assert metadata["data"]["scaling"] == "znorm_minback"
        assert metadata["data"]["split_hash"] == cli.data(extra).split_hash
        assert ("pretrain" in metadata) == ("pretraining" in extra) == ("head" not in metadata)


def test_last_checkpoint_is_of_the_last_epoch(cli: CommandLine) -> None:
    """Although the validation does not improve from epoch to epoch."""
    done = cli.run("--max_epochs 4 --learning_rate 1e-12")
    assert done.checkpoint("last")["global_step"] == 4 * 9
    assert done.checkpoint("best")["global_step"] == 9


@pytest.mark.parametrize(
    ("extra", "files"),
    [
        ("--max_steps 2", {"best.ckpt", "last.ckpt"}),
        ("--limit_val_batches 0", {"best.ckpt", "last.ckpt"}),
        ("--train_split 0.8 --val_split 0", {"last.ckpt"}),
        (f"{NEXT} --train_split 0.8 --val_split 0 --save_every_checkpoints", {"last.ckpt"}),
        ("--no-enable_checkpointing", set()),
        ("--fast_dev_run", set()),
    ],
)
def test_checkpoints_without_validation(cli: CommandLine, extra: str, files: set[str]) -> None:
    done = cli.run(extra)
    found = {name.removeprefix("checkpoints/") for name in done.files if name.endswith(".ckpt")}
    assert {name for name in found if not name.startswith("epoch=")} == files
    assert "metrics.json" in done.files


@shows("resume_ckpt_path")
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    "extra",
    ["--dropout 0.1 --learning_rate 1e-2", f"{MIM} --mask_ratio 0.5", f"{NEXT} {AUGMENT}"],
)
def test_resumed_run_equals_a_straight_one(cli: CommandLine, extra: str, elsewhere: bool) -> None:
    """2 epochs and 2 more are 4, in the same folder or in another one."""
    extra = f"{extra} --no-use_scheduler"
    straight = cli.run(f"{extra} --max_epochs 4")
    half = cli.run(f"{extra} --max_epochs 2")
    last = half.folder / "checkpoints" / "last.ckpt"
    target = cli.folder / "resumed" if elsewhere else half.folder
    resumed = cli.run(f"{extra} --max_epochs 4 --resume_ckpt_path {last} --output_dir {target}")
    assert resumed.metrics["train/steps"] == 36
    for key, value in comparable(straight.written).items():
        assert resumed.written[key] == pytest.approx(value, abs=1e-6), key
    for name in ("last", "best"):
        a, b = straight.checkpoint(name), resumed.checkpoint(name)
        assert a["global_step"] == b["global_step"]
        for key in a["state_dict"]:
            torch.testing.assert_close(b["state_dict"][key], a["state_dict"][key])


@shows("skip_bad_batches")
def test_bad_steps_that_may_be_passed_over(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses of weights that have exploded: every step is bad."""
    flags = "--optimizer SGD --learning_rate 1e30 --no-use_scheduler --output_dir "
    assert main(cli.argv(f"{flags} none")) == 2
    assert "--skip_bad_batches N passes over" in capsys.readouterr().err
    assert main(cli.argv(f"{flags} two --skip_bad_batches 2")) == 2
    assert "--skip_bad_batches 2 steps have been passed over" in capsys.readouterr().err
    fine = cli.run("--skip_bad_batches 2")
    assert fine.metrics["train/skipped_steps"] == 0


def test_resumed_run_follows_the_schedule(cli: CommandLine) -> None:
    """An interrupted run of 4 epochs, resumed, takes the learning rates still to come."""
    extra = "--max_epochs 4 --learning_rate 1e-2 --dropout 0.1"
    straight = cli.run(f"{extra} --save_every_checkpoints")
    (middle,) = straight.folder.glob("checkpoints/epoch=1-*.ckpt")
    resumed = cli.run(f"{extra} --resume_ckpt_path {middle}")
    a, b = straight.checkpoint()["state_dict"], resumed.checkpoint()["state_dict"]
    for key in a:
        torch.testing.assert_close(b[key], a[key])
    assert resumed.written["test/loss"] == pytest.approx(straight.written["test/loss"], abs=1e-6)


def test_resumed_run_keeps_its_curves(cli: CommandLine) -> None:
    half = cli.run("--max_epochs 1 --log_every_n_steps 1 --no-use_scheduler")
    last = half.folder / "checkpoints" / "last.ckpt"
    again = f"--max_epochs 2 --resume_ckpt_path {last} --output_dir {half.folder}"
    cli.run(f"{again} --log_every_n_steps 1 --no-use_scheduler")
    with open(half.folder / "logs" / "metrics.csv", newline="") as stream:
        steps = [int(row["step"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert steps == list(range(18))


@shows("test_only", "test_ckpt_path")
@pytest.mark.parametrize(
    "extra",
    [
        "--clf_head_version mamba --dataset_split_num 3 --input_scaling_method minmax_zeroback",
        f"{AGE} --label_scaling_method minmax --stride_between_seq 0.5 --mamba_pe_method ff",
        "--keep_background --embed_dim 32 --d_state 4 --headdim 16 --bad_subj_path {bad}",
        "--stride_within_seq 2 --shuffle_time_sequence --seed 3",
        "--shuffle_labels 5",
        "--limit_test_samples 2",
    ],
)
def test_test_only_repeats_the_test(cli: CommandLine, extra: str) -> None:
    """From the checkpoint alone: no flag of the run need be remembered."""
    (cli.folder / "bad.txt").write_text("sub-03\n")
    done = cli.run(extra.format(bad=cli.folder / "bad.txt"))
    best = done.folder / "checkpoints" / "best.ckpt"
    run(f"--test_only --test_ckpt_path {best} --output_dir tested --accelerator cpu".split())
    tested = Finished({}, Path("tested"))
    assert predictions(tested) == predictions(done)
    found = {key: value for key, value in tested.written.items() if key.startswith("test/")}
    expected = {key: value for key, value in done.written.items() if key.startswith("test/")}
    assert found.keys() == expected.keys()
    for key in found:
        if expected[key] is None:  # an interval of too few subjects
            assert found[key] is None, key
        else:
            assert found[key] == pytest.approx(expected[key], rel=1e-6), key


@shows("load_model_path")
def test_fine_tuning_and_frozen_backbone(cli: CommandLine) -> None:
    pretrained = cli.run(NEXT)
    path = pretrained.folder / "checkpoints" / "last.ckpt"
    start = {k: v for k, v in pretrained.checkpoint()["state_dict"].items() if "output" not in k}
    assert any(not torch.equal(v, cli.module().state_dict()[k]) for k, v in start.items())
    for extra, frozen in (("--freeze_feature_extractor --dropout 0.2", True), ("", False)):
        rate = "--learning_rate 1e-2"
        done = cli.run(f"--load_model_path {path} {rate} {extra}")
        end = done.checkpoint()["state_dict"]
        same = {key: torch.equal(end[key], value) for key, value in start.items()}
        assert same.pop("model.embedder.pos"), "a buffer"
        assert all(same.values()) if frozen else not any(same.values())
        moved = end["head.classifier.weight"] - cli.module().state_dict()["head.classifier.weight"]
        assert moved.abs().max() > 0


@shows("lora_rank", "lora_alpha")
def test_lora(cli: CommandLine) -> None:
    """The backbone's weights stay; their updates are learned, resumed, tested and merged."""
    pretrained = cli.run(NEXT)
    path = pretrained.folder / "checkpoints" / "last.ckpt"
    flags = f"--load_model_path {path} --lora_rank 2 --learning_rate 1e-2 --max_epochs 2"
    done = cli.run(flags)
    start, end = pretrained.checkpoint()["state_dict"], done.checkpoint()["state_dict"]
    updates = [key for key in end if "lora_" in key]
    assert len(updates) == 2 * 2  # A and B of in_proj and out_proj in one layer
    assert all(end[key].abs().max() > 0 for key in updates)
    for key, value in start.items():
        name = key.replace("_proj.weight", "_proj.base_layer.weight")
        assert "output" in key or torch.equal(end[name], value), key
    metadata = done.checkpoint()["neuromamba"]
    merged = read_checkpoint(done.folder / "checkpoints" / "last.ckpt").state_dict
    layer = "mamba_layers.0.1.in_proj"
    a, b = (end[f"model.{layer}.lora_{one}.default.weight"] for one in "AB")
    wanted = start[f"model.{layer}.weight"] + metadata["downstream"]["lora_alpha"] / 2 * b @ a
    torch.testing.assert_close(merged[f"{layer}.weight"], wanted)
    # The tested model is the trained one, with its updates in the weights.
    best = done.folder / "checkpoints" / "best.ckpt"
    run(f"--test_only --test_ckpt_path {best} --output_dir tested --accelerator cpu".split())
    for one, other in zip(
        predictions(Finished({}, Path("tested"))), predictions(done), strict=True
    ):
        assert float(one["prob_1"]) == pytest.approx(float(other["prob_1"]), abs=1e-5)
    other = cli.run(f"{flags} --lora_alpha 64")
    assert other.metrics["train/loss"] != done.metrics["train/loss"]
    assert main(cli.argv("--lora_rank 2")) == 2
    assert main(cli.argv(f"--load_model_path {path} --lora_rank 17")) == 2
    assert main(cli.argv(f"{flags} --freeze_feature_extractor")) == 2
    assert main(cli.argv(f"--load_model_path {path} --lora_alpha 8")) == 2


def test_lora_goes_on_where_it_stopped(cli: CommandLine) -> None:
    path = cli.run(NEXT).folder / "checkpoints" / "last.ckpt"
    flags = f"--load_model_path {path} --lora_rank 2 --learning_rate 1e-2 --max_epochs 2"
    whole = cli.run(flags)
    again = cli.argv(f"{flags} --output_dir parts --resume_ckpt_path last")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FMambaModule, "on_train_epoch_start", _stop_in_the_second_epoch, raising=False
        )
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(again)
    run(again)
    found, wanted = Finished({}, Path("parts")).checkpoint(), whole.checkpoint()
    for key, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value), key


def _stop_in_the_second_epoch(self: FMambaModule) -> None:
    if self.current_epoch == 1:
        raise RuntimeError("pulled the plug")


@shows("layer_decay")
def test_rates_fall_from_the_head_down(cli: CommandLine) -> None:
    module = cli.module("--layer_decay 0.5 --depth 2 --learning_rate 0.8 --no-use_scheduler")
    optimizer = module.configure_optimizers()
    names = {id(p): name for name, p in module.named_parameters()}
    rate = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rate.keys() == set(names.values())
    for name, value in rate.items():
        if "mamba_layers.1" in name:
            wanted = 0.4
        elif "mamba_layers.0" in name:
            wanted = 0.2
        else:
            wanted = 0.1 if "embedder" in name else 0.8
        assert value == pytest.approx(wanted), name
    assert optimizer.param_groups[0]["lr"] == 0.8  # the one that is logged
    assert main(cli.argv("--layer_decay 0")) == 2
    assert main(cli.argv("--layer_decay 0.5 --freeze_feature_extractor")) == 2
    assert main(cli.argv(f"{NEXT} --layer_decay 0.5")) == 2


def test_frozen_backbone_starts_from_the_file(cli: CommandLine) -> None:
    """A loaded backbone changes the loss of the very first step; dropout does not touch it."""
    path = cli.run(f"{NEXT} --learning_rate 1e-2").folder / "checkpoints" / "last.ckpt"
    scratch, loaded = "--freeze_feature_extractor", f"--load_model_path {path}"
    one = f"{scratch} --max_steps 1"
    assert loss(cli, f"{one} {loaded}") != loss(cli, one)
