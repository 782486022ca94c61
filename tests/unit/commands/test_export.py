"""Exporting: the released layout, metadata, and what is not written."""

from __future__ import annotations

import json
import os
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from neuromamba.checkpoints.io import (
    CHECKPOINT_KEY,
    canonical_name,
    load_backbone,
    load_strictly,
    names_in_module,
    read_checkpoint,
)
from neuromamba.commands.export import export_parser, main
from neuromamba.common.version import VERSION
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.tokenizer import PackedTokens
from tests.helpers.paths import GOLDEN
from tests.unit.checkpoints.test_io import (
    CONFIG,
    DATA_METADATA,
    downstream_module,
    pretrain_module,
    save,
)

LIGHTNING19 = GOLDEN / "lightning19"
TWELVE = ModelConfig(
    img_size=(4, 4, 4, 4), patch_size=(2, 2, 2, 2), embed_dim=16, depth=12, background="zero"
)
# FACTS: the keys of the released files, in their order.
RELEASED = [
    "embedder.projection",
    "embedder.pos",
    *(
        f"mamba_layers.{layer}.{name}"
        for layer in range(12)
        for name in (
            "0.weight",
            "1.in_proj.weight",
            "1.conv1d.weight",
            "1.conv1d.bias",
            "1.dt_bias",
            "1.A_log",
            "1.D",
            "1.norm.weight",
            "1.out_proj.weight",
        )
    ),
    "norm.weight",
    "output_layer.weight",
    "output_layer.bias",
]
PREFIX = "_forward_module.model."


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A checkpoint of ours of a 12-layer backbone, in a run folder."""
    torch.manual_seed(0)
    module = pretrain_module(TWELVE, data_metadata=DATA_METADATA)
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    save(module, path)
    return path


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A checkpoint of ours of a task, with a Mamba head."""
    save(downstream_module(), tmp_path / "task.ckpt")
    return tmp_path / "task.ckpt"


def export(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert main([*map(str, argv)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


def tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt":
        loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
        return loaded
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# ------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("conv", ["conv1d", "conv_xBC"])
def test_released_layout(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], conv: str
) -> None:
    out = tmp_path / "exports" / "weights.pt"
    shown = export(capsys, pretrained.parents[1], out, "--conv_name", conv)
    written = tensors(out)
    assert list(written) == [PREFIX + name.replace("conv1d", conv) for name in RELEASED]
    assert len(written) == 113
    assert all(tensor.dtype == torch.float32 for tensor in written.values())
    assert f"read    {pretrained} (Lightning, epoch 3)" in shown and "113 tensors" in shown
    parameters = sum(p.numel() for p in build_model(TWELVE).parameters())
    assert f"{parameters:,} parameters, fp32" in shown
    source = read_checkpoint(pretrained).state_dict
    one, other = build_model(TWELVE), build_model(TWELVE)
    load_strictly(one, source, pretrained)
    assert load_backbone(other, out) == {}
    fmri = torch.randn(1, 1, 4, 4, 4, 4)
    assert torch.equal(one(fmri).prediction, other(fmri).prediction)


@pytest.mark.parametrize("conv", ["conv1d", "conv_xBC"])
def test_released_files_come_through_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], conv: str
) -> None:
    torch.manual_seed(3)
    state = build_model(TWELVE).state_dict()
    released = {PREFIX + name.replace("conv1d", conv): state[name] for name in RELEASED}
    torch.save(released, tmp_path / "3M_E192.pt")
    steps = ["3M_E192.pt", "a.safetensors", "b.pt", "c.safetensors", "d.pt"]
    for source, out in pairwise(steps):
        shown = export(capsys, tmp_path / source, tmp_path / out, "--conv_name", conv)
        assert "the checkpoint has no metadata" in shown
    again = tensors(tmp_path / "d.pt")
    assert list(again) == list(released)
    assert all(torch.equal(again[name], tensor) for name, tensor in released.items())
    assert read_checkpoint(tmp_path / "c.safetensors").metadata == {}


def test_metadata(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"val/loss": 0.25, "val/skill": None}
    (pretrained.parents[1] / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "weights.safetensors"
    assert "with its metadata" in export(capsys, pretrained, out)
    metadata = read_checkpoint(pretrained).metadata
    contents = read_checkpoint(out)
    assert contents.metadata == metadata and metadata["data"]["split_hash"] == "0123"
    origin = contents.export
    assert "source" not in origin and origin["kind"] == "Lightning"
    assert origin["epoch"] == 3 and origin["metrics"] == metrics
    assert origin["code_version"].startswith(VERSION)
    beside = json.loads((tmp_path / "weights.safetensors.json").read_text())
    assert beside == {CHECKPOINT_KEY: metadata, "export": dict(origin)}
    # An export of the export says where it all began.
    export(capsys, out, tmp_path / "second.safetensors")
    second = read_checkpoint(tmp_path / "second.safetensors")
    assert second.metadata == metadata and second.export["source_export"] == dict(origin)
    assert "metrics" not in second.export


def test_metrics_are_those_of_the_checkpoint(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They tell of best.ckpt; of last.ckpt where there is no other."""
    (pretrained.parents[1] / "metrics.json").write_text("{}")
    last = pretrained.with_name("last.ckpt")
    last.write_bytes(pretrained.read_bytes())
    export(capsys, last, tmp_path / "last.safetensors")
    assert "metrics" not in read_checkpoint(tmp_path / "last.safetensors").export
    pretrained.unlink()
    export(capsys, last, tmp_path / "only.safetensors")
    assert "metrics" in read_checkpoint(tmp_path / "only.safetensors").export


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_task_gives_the_same_predictions(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"task{suffix}"
    export(capsys, task, out, "--conv_name", "conv_xBC")
    names = list(tensors(out))
    heads = [name for name in names if name.startswith("_forward_module.head.")]
    assert any("conv_xBC" in name for name in heads) and not any("conv1d" in n for n in names)
    one, other = downstream_module(seed=1), downstream_module(seed=2)
    for module, path in ((one, task), (other, out)):
        state = names_in_module(read_checkpoint(path).state_dict)
        load_strictly(module, state, path)
    features, packed = torch.randn(7, 16), PackedTokens(torch.zeros(7, 1), torch.arange(7), (3, 4))
    assert torch.equal(one.head(features, packed), other.head(features, packed))
    fmri = torch.randn(1, 1, 4, 4, 4, 4)
    assert torch.equal(one.model(fmri).features, other.model(fmri).features)


def test_backbone_only(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "backbone.safetensors"
    export(capsys, task, out, "--backbone_only")
    contents = read_checkpoint(out)
    assert not any(name.startswith("head.") for name in contents.state_dict)
    assert not {"head", "downstream", "target_scaling"} & set(contents.metadata)
    assert contents.metadata["model"] == read_checkpoint(task).metadata["model"]
    assert contents.export["backbone_only"] is True
    load_strictly(build_model(CONFIG, output_layer=False), contents.state_dict, out)


def test_bf16(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("fp32", "bf16"):
        export(capsys, pretrained, tmp_path / f"{dtype}.pt", "--dtype", dtype)
    full, half = tensors(tmp_path / "fp32.pt"), tensors(tmp_path / "bf16.pt")
    for name, tensor in full.items():
        assert torch.equal(half[name], tensor.bfloat16())


def test_views_do_not_bring_their_memory_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = torch.randn(1_000_000)
    torch.save({"norm.weight": memory[:8], "mamba_layers.0.1.D": memory[8:10]}, tmp_path / "v.pt")
    export(capsys, tmp_path / "v.pt", tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 4000


@pytest.mark.parametrize("name", ["stage1_bf16", "stage2_fp32", "stage3_bf16_frozen"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_deepspeed_folders_become_fp32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    out = tmp_path / f"w{suffix}"
    shown = export(capsys, LIGHTNING19 / name, out)
    assert f"DeepSpeed, ZeRO stage {name[5]}" in shown
    written = {canonical_name(key): tensor for key, tensor in tensors(out).items()}
    with np.load(LIGHTNING19 / name / "weights.npz") as file:
        assert len(written) == len(file.files)
        for key in file.files:
            assert written[canonical_name(key)].dtype == torch.float32
            assert np.array_equal(written[canonical_name(key)].numpy(), file[key])


# -------------------------------------------------------------------------- what is not written


def test_nothing_is_replaced_unasked(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights.pt"
    out.write_text("mine")
    assert f"OUTPUT: '{out}' is there already" in refusal(capsys, pretrained, out)
    assert out.read_text() == "mine"
    out.unlink()
    beside = tmp_path / "weights.pt.json"
    beside.write_text("mine")
    assert f"OUTPUT: '{beside}' is there already" in refusal(capsys, pretrained, out)
    assert not out.exists()
    export(capsys, pretrained, out, "--force")
    assert len(tensors(out)) == 113 and "neuromamba" in beside.read_text()
    (tmp_path / "folder.pt").mkdir()
    assert "folder.pt" in refusal(capsys, pretrained, tmp_path / "folder.pt", "--force")
    assert "is the checkpoint itself" in refusal(capsys, out, out, "--force")


@pytest.mark.parametrize("name", ["weights.zip", "weights.ckpt", "weights.json"])
def test_other_suffixes(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    message = refusal(capsys, "none.ckpt", tmp_path / name)
    assert "expected a name that ends in .pt or .safetensors" in message


def test_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w.pt"
    assert "CHECKPOINT: there is no file 'none.ckpt'" in refusal(capsys, "none.ckpt", out)
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "resnet.pt")
    message = refusal(capsys, tmp_path / "resnet.pt", out)
    assert (
        "resnet.pt' holds 1 tensor(s) that neither FMamba nor SwiFT has, such as 'conv.weight'"
        in message
    )
    assert not out.exists() and not list(tmp_path.glob("w.pt*"))


def test_weights_that_do_not_fit_their_card(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = torch.load(pretrained, weights_only=True)
    content[CHECKPOINT_KEY]["model"]["depth"] = 11
    torch.save(content, pretrained)
    message = refusal(capsys, pretrained, tmp_path / "w.safetensors")
    assert "does not fit the model" in message and "mamba_layers.11.0.weight" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    (tmp_path / "out").mkdir()
    out, limits = tmp_path / "out" / f"w{suffix}", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        message = refusal(capsys, pretrained, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"OUTPUT: '{out}' cannot be written (" in message and "disk is full" in message
    assert "inline_container" not in message and list(out.parent.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, a folder nobody can write")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_folder_that_cannot_be_written(
    pretrained: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    message = refusal(capsys, pretrained, f"/proc/w{suffix}")
    assert "OUTPUT: '/proc" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_follow_the_umask(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    before = os.umask(0o027)
    try:
        export(capsys, pretrained, tmp_path / f"w{suffix}")
    finally:
        os.umask(before)
    for path in (tmp_path / f"w{suffix}", tmp_path / f"w{suffix}.json"):
        assert path.stat().st_mode & 0o777 == 0o640


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        export_parser().parse_args(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--backbone_only", "--conv_name", "--dtype", "--force"))
