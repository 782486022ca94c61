"""Checkpoints: released names, strict loading, and files that are refused."""

from __future__ import annotations

import argparse
import datetime
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neuromamba.checkpoints.files import read_file
from neuromamba.checkpoints.io import (
    CHECKPOINT_KEY,
    canonical_name,
    load_backbone,
    load_strictly,
    read_checkpoint,
)
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.serialise import from_dict
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.pretrain import PretrainModule

CONFIG = ModelConfig(
    img_size=(4, 4, 4, 4), patch_size=(2, 2, 2, 2), embed_dim=16, depth=2, background="zero"
)
RELEASED = "_forward_module.model."


def backbone(seed: int, output_layer: bool = True, config: ModelConfig = CONFIG) -> FMamba:
    torch.manual_seed(seed)
    return build_model(config, output_layer=output_layer)


def named(state: dict[str, Tensor], prefix: str, conv: str = "conv1d") -> dict[str, Tensor]:
    return {prefix + key.replace("conv1d", conv): value for key, value in state.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def refusal(path: Path, into: FMamba | None = None) -> str:
    with pytest.raises(UserInputError) as caught:
        load_backbone(into or backbone(1), path)
    message = str(caught.value)
    assert message.startswith("--load_model_path: ") and str(path) in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize("conv", ["conv1d", "conv_xBC"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        RELEASED,
        "model.",
        "module.",
        "_orig_mod.",
        "module.model.",
        "_forward_module.module.model.",
        "_orig_mod._forward_module.model.",
        "model._orig_mod.",  # torch.compile of the backbone inside the LightningModule
        "base_model.model.",  # peft
        "backbone.",
        "module.backbone._orig_mod.",
    ],
)
def test_released_names_load_strictly(path: Path, prefix: str, conv: str) -> None:
    source, target = backbone(0), backbone(1)
    torch.save(named(source.state_dict(), prefix, conv), path)
    assert load_backbone(target, path) == {}
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    fmri = torch.randn(1, 1, 4, 4, 4, 4)
    assert torch.equal(source(fmri).prediction, target(fmri).prediction)


@pytest.mark.parametrize(
    "name", ["model", "model_state_dict", "module", "net", "weights", "ema", "state_dict"]
)
def test_weights_that_other_programs_keep_under_a_name(path: Path, name: str) -> None:
    source, target = backbone(0), backbone(1)
    torch.save({"epoch": 3, name: source.state_dict(), "optimizer": {"lr": 0.1}}, path)
    load_backbone(target, path)
    assert torch.equal(target.norm.weight, source.norm.weight)
    assert torch.equal(target.embedder.projection, source.embedder.projection)


def test_parts_that_were_compiled_apart(path: Path) -> None:
    """torch.compile around single blocks puts its name inside the keys."""
    source, target = backbone(0), backbone(1)
    state = {
        re.sub(r"^(mamba_layers\.\d+)\.", r"\1._orig_mod.", key): value
        for key, value in source.state_dict().items()
    }
    assert any("._orig_mod." in key for key in state)
    torch.save(state, path)
    load_backbone(target, path)
    assert torch.equal(
        target.mamba_layers[0][1].A_log,  # type: ignore[index]
        source.mamba_layers[0][1].A_log,  # type: ignore[index]
    )


def test_stored_positions_replace_those_drawn_here(path: Path) -> None:
    state = backbone(0).state_dict()
    state["embedder.pos"] = torch.randn(state["embedder.pos"].shape)
    torch.save(named(state, RELEASED), path)
    target = backbone(1)
    load_backbone(target, path)
    assert target.embedder.pos is not None
    assert torch.equal(target.embedder.pos, state["embedder.pos"])


def test_canonical_names() -> None:
    for key in ("_forward_module.model.norm.weight", "model.norm.weight", "norm.weight"):
        assert canonical_name(key) == "norm.weight"
    released = "_forward_module.model.mamba_layers.3.1.conv_xBC.weight"
    assert canonical_name(released) == "mamba_layers.3.1.conv1d.weight"
    assert canonical_name("_forward_module.head.blocks.0.0.conv1d.bias") == (
        "head.blocks.0.0.conv1d.bias"
    )


def test_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    source, target = backbone(0), backbone(1)
    save_file(named(source.state_dict(), RELEASED, "conv_xBC"), file)
    load_backbone(target, file)
    assert torch.equal(target.norm.weight, source.norm.weight)
    assert torch.equal(target.embedder.projection, source.embedder.projection)
    raw = file.read_bytes()
    for size in (0, 5, 100, len(raw) - 1):
        file.write_bytes(raw[:size])
        assert "is damaged or not a checkpoint" in refusal(file)


def test_half_precision_file(path: Path) -> None:
    source, target = backbone(0), backbone(1)
    torch.save(named(source.bfloat16().state_dict(), RELEASED), path)
    load_backbone(target, path)
    assert target.embedder.projection.dtype == torch.float32
    assert torch.equal(target.embedder.projection, source.embedder.projection.float())


def test_output_layer_is_dropped_only_downstream(path: Path) -> None:
    source = backbone(0)
    torch.save(named(source.state_dict(), RELEASED), path)
    downstream = backbone(1, output_layer=False)
    load_backbone(downstream, path)
    assert torch.equal(downstream.embedder.projection, source.embedder.projection)
    # Pre-training goes on from it, output layer and all ...
    pretraining = backbone(1)
    load_backbone(pretraining, path)
    assert pretraining.output_layer is not None and source.output_layer is not None
    assert torch.equal(pretraining.output_layer.weight, source.output_layer.weight)
    # ... but not from a backbone that has lost it.
    torch.save(named(downstream.state_dict(), RELEASED), path)
    assert "missing keys: output_layer.bias, output_layer.weight." in refusal(path)


# ----------------------------------------------------------------------- differences are named


def test_missing_and_unexpected_keys_are_listed(path: Path) -> None:
    state = named(backbone(0).state_dict(), RELEASED)
    del state[RELEASED + "norm.weight"], state[RELEASED + "mamba_layers.1.1.A_log"]
    state[RELEASED + "mamba_layers.2.0.weight"] = torch.ones(16)
    state[RELEASED + "output_layer2.weight"] = torch.ones(16)
    torch.save(state, path)
    target = backbone(1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    message = refusal(path, target)
    assert "missing keys: mamba_layers.1.1.A_log, norm.weight." in message
    assert "unexpected keys: mamba_layers.2.0.weight, output_layer2.weight." in message
    for key, value in target.state_dict().items():  # nothing was copied
        assert torch.equal(value, before[key]), key


def test_another_size_is_named(path: Path) -> None:
    wider = ModelConfig(img_size=CONFIG.img_size, patch_size=CONFIG.patch_size, embed_dim=32)
    torch.save(named(backbone(0, config=wider).state_dict(), RELEASED), path)
    message = refusal(path)
    assert "embedder.projection is [16, 32] in the file, [16, 16] in the model" in message
    assert "; ...)" in message and "--embed_dim, --depth" in message
    assert "unexpected keys: mamba_layers.10.0.weight" in message  # twelve blocks, not two


def test_another_grid_is_named(path: Path) -> None:
    larger = ModelConfig(img_size=(6, 4, 4, 4), patch_size=(2, 2, 2, 2), embed_dim=16, depth=2)
    torch.save(named(backbone(0, config=larger).state_dict(), RELEASED), path)
    message = refusal(path)
    assert "1 tensors of another size (embedder.pos is [1, 24, 16] in the file" in message
    assert "--img_size" in message


def test_optional_prefixes_are_not_optional_by_default(path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    state = module.state_dict() | {"head.weight": torch.ones(1)}
    with pytest.raises(UserInputError, match=r"--flag: .*unexpected keys: head\.weight"):
        load_strictly(module, state, path, flag="--flag")
    load_strictly(module, state, path, optional=["head."])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("norm.weight", RELEASED + "norm.weight"),
        ("model.norm.weight", "module.norm.weight"),
        ("mamba_layers.0.1.conv1d.bias", "mamba_layers.0.1.conv_xBC.bias"),
    ],
)
def test_duplicates_are_refused(path: Path, one: str, other: str) -> None:
    torch.save({one: torch.ones(2), other: torch.zeros(2)}, path)
    assert f"holds the weights '{canonical_name(one)}' twice" in refusal(path)


# ------------------------------------------------------------------------ files that are refused


@dataclass(frozen=True)
class FrozenCard:
    """What older training scripts put into their checkpoints."""

    width: int = 16


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (argparse.Namespace(embed_dim=16), "argparse.Namespace"),
        (ModelConfig(), "neuromamba.config.model.ModelConfig"),
        (FrozenCard(), f"{__name__}.FrozenCard"),
        (Path("a"), "pathlib."),
        (datetime.date(2026, 1, 1), "datetime.date"),
        (np.float64(1.0), "numpy."),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (print, "print"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_by_type(path: Path, value: Any, type_name: str, zipped: bool) -> None:
    content = {"state_dict": named(backbone(0).state_dict(), RELEASED), "hyper_parameters": value}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    message = message.replace("__builtin__.", "").replace("builtins.", "")
    assert f"holds an object of type {type_name}" in message
    assert "run code" in message


def test_no_code_is_run(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    torch.save({"norm.weight": torch.ones(1), "x": Exploit()}, path)
    refusal(path)
    assert not witness.exists()
    with path.open("rb") as stream:  # the file does hold the call
        torch.load(stream, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(path: Path, zipped: bool) -> None:
    torch.save(
        named(backbone(0).state_dict(), RELEASED), path, _use_new_zipfile_serialization=zipped
    )
    raw, target = path.read_bytes(), backbone(1)
    rng = np.random.default_rng(0)
    # Cuts everywhere, densely in the head, where the pickle of the older format lies.
    cuts = {0, 1, 4, 100, len(raw) // 2, len(raw) - 1, *rng.integers(0, 4000, 60).tolist()}
    for size in sorted(cuts):
        path.write_bytes(raw[:size])
        message = refusal(path, target)
        # A name cut short in the older format's pickle cannot be told from a foreign type.
        assert "damaged" in message or (not zipped and "holds an object of type" in message)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 26633216\n",
        b"<html><body>404</body></html>",
        b"\x80\x04\x95abc",
        pickle.dumps({"a": [1, 2]}, protocol=5),
        b"PK\x03\x04nothing",
    ],
    ids=["git-lfs", "html", "pickle 4", "pickle 5", "zip"],
)
def test_other_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = refusal(path)
    assert "damaged" in message and "object of type" not in message


def test_no_file_and_folder(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.ckpt")
    message = refusal(tmp_path)
    assert "is a folder without best.ckpt and last.ckpt; there is no checkpoint in it" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor, expected a state dict"),
        ([torch.ones(3)], "holds a list, expected a state dict"),
        ({}, "holds no tensors"),
        ({"epoch": 3, "state_dict": {}}, "holds no tensors"),
        ({0: torch.ones(3)}, "holds no tensors"),
        ({"state_dict": [torch.ones(3)]}, "holds a list as its state dict"),
    ],
)
def test_contents_that_are_no_state_dict(path: Path, content: Any, message: str) -> None:
    torch.save(content, path)
    assert message in refusal(path)


def test_the_flag_is_the_one_that_named_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"^--test_ckpt_path: there is no file"):
        read_checkpoint(tmp_path / "x.ckpt", "--test_ckpt_path")


# --------------------------------------------------------------------------- our own files

DATA_METADATA = {
    "scaling": "znorm_minback",
    "split_hash": "0123",
    "config": {"dataset_name": ["Dummy"], "train_split": 0.8, "limit_test_samples": None},
}


def save(module: PretrainModule | DownstreamModule, path: Path) -> None:
    checkpoint: dict[str, Any] = {"epoch": 3, "state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


def pretrain_module(
    model: ModelConfig, objective: PretrainConfig | None = None, **others: Any
) -> PretrainModule:
    return PretrainModule(
        model=model,
        objective=objective or PretrainConfig(),
        optim=OptimConfig(),
        total_steps=10,
        **others,
    )


def downstream_module(seed: int = 0, **task: Any) -> DownstreamModule:
    torch.manual_seed(seed)
    return DownstreamModule(
        model=CONFIG,
        head=HeadConfig(name="mamba", out_features=1, mamba_depth=1),
        task=DownstreamConfig(task="age", **task),
        optim=OptimConfig(),
        total_steps=10,
        target_scaling=TargetScaling(33.5, 7.25),
        data_metadata=DATA_METADATA,
    )


def test_metadata_of_pretraining(path: Path) -> None:
    objective = PretrainConfig(objective="mim", mask_ratio=0.5, masking_type="tube")
    module = pretrain_module(CONFIG, objective, data_metadata=DATA_METADATA)
    save(module, path)
    assert isinstance(torch.load(path, weights_only=True)[CHECKPOINT_KEY], dict)
    metadata = read_checkpoint(path).metadata
    assert from_dict(ModelConfig, metadata["model"], "metadata") == CONFIG
    assert from_dict(PretrainConfig, metadata["pretrain"], "metadata") == objective
    assert metadata["data"] == DATA_METADATA
    assert metadata["orientation"] == "LAS" and metadata["format"] == 1


def test_metadata_of_a_task(path: Path) -> None:
    module = downstream_module(freeze_feature_extractor=True, label_scaling_method="minmax")
    save(module, path)
    contents = read_checkpoint(path)
    metadata = contents.metadata
    assert from_dict(ModelConfig, metadata["model"], "metadata") == CONFIG
    assert from_dict(HeadConfig, metadata["head"], "metadata") == module.head_config
    assert from_dict(DownstreamConfig, metadata["downstream"], "metadata") == module.task
    assert TargetScaling(*metadata["target_scaling"]) == (33.5, 7.25)
    # Names of the backbone plain, those of the head with "head.": nothing is lost or added.
    heads = {"head." + key for key in module.head.state_dict()}
    assert set(contents.state_dict) == set(module.model.state_dict()) | heads


def test_fine_tuned_backbone_loads_without_its_head(path: Path) -> None:
    source = downstream_module()
    save(source, path)
    target = backbone(1, output_layer=False)
    assert load_backbone(target, path)["downstream"]["task"] == "age"
    for key, value in source.model.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_pretrained_module_goes_into_a_task(path: Path) -> None:
    source = pretrain_module(CONFIG)
    save(source, path)
    target = downstream_module(seed=5)
    head = {key: value.clone() for key, value in target.head.state_dict().items()}
    load_backbone(target.model, path)
    for key, value in target.model.state_dict().items():
        assert torch.equal(value, source.model.state_dict()[key]), key
    for key, value in target.head.state_dict().items():
        assert torch.equal(value, head[key]), key


def test_metadata_of_another_kind_are_refused(path: Path) -> None:
    torch.save({"norm.weight": torch.ones(2), CHECKPOINT_KEY: [1]}, path)
    with pytest.raises(UserInputError, match="its metadata are list"):
        read_checkpoint(path)


class AsPython311Stored:
    """An enumeration's member as Python 3.11.0 to 3.11.3 wrote it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ("text", "upper")


def test_what_a_process_has_admitted_elsewhere_does_not_matter(tmp_path: Path) -> None:
    """DeepSpeed's classes have the names of the stand-ins; torch would take either, by chance."""

    def rival() -> Any:
        def refusing(*_: Any) -> None:
            raise pickle.UnpicklingError("expected an enumeration")

        refusing.__module__, refusing.__qualname__ = "builtins", "getattr"
        return refusing

    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2), "stage": AsPython311Stored()}, path)
    rivals = [rival() for _ in range(30)]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(rivals)
    try:
        assert torch.equal(read_file(path)["w"], torch.ones(2))
        assert set(rivals) <= set(torch.serialization.get_safe_globals())
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
