"""Metadata of a checkpoint that are damaged, or that claim sizes, end in one line, at once."""

from __future__ import annotations

import copy
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neuromamba
from neuromamba.checkpoints.io import CHECKPOINT_KEY, read_checkpoint
from neuromamba.checkpoints.zero import open_zero
from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.serialise import read_yaml, to_dict
from neuromamba.config.training import DownstreamConfig
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.checkpoint_flags import flags_of_metadata
from neuromamba.fmamba.heads import build_head
from neuromamba.inference.contract import InputContract

MODEL = ModelConfig(
    img_size=(4, 4, 4, 4), patch_size=(2, 2, 2, 2), embed_dim=16, depth=1, background="zero"
)
HEAD = HeadConfig(out_features=2)
Change = Callable[[dict[str, Any]], Any]


def metadata() -> dict[str, Any]:
    data = DataConfig(dataset_name=("Dummy",), image_path=("x",), sequence_length=4)
    inputs = {
        "runs": 1,
        "measures": {"tr": [0.7, 0.7, 0.7]},
        "grid_affine": [[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1.0]],
        "mean": "ff" * 8,
        "mirror_gain": [0.0, 0.0, 0.0],
    }
    return {
        "format": 1,
        "model": to_dict(MODEL),
        "orientation": "LAS",
        "data": {
            "config": to_dict(data),
            "scaling": data.input_scaling_method,
            "spaces": [],
            "tr": [0.7],
            "inputs": inputs,
            "training_contents": [],
        },
        "head": to_dict(HEAD),
        "downstream": to_dict(DownstreamConfig(task="sex")),
        "target_scaling": [0.0, 1.0],
    }


def save(path: Path, found: Any) -> Path:
    torch.manual_seed(0)
    state = {f"model.{k}": v for k, v in build_model(MODEL).state_dict().items()}
    state |= {f"head.{k}": v for k, v in build_head(HEAD, MODEL).state_dict().items()}
    torch.save({"state_dict": state, CHECKPOINT_KEY: found}, path)
    return path


def at(*keys: str, value: Any = ...) -> Change:
    """Put a value in place of an entry; without one the entry is taken out."""

    def change(found: dict[str, Any]) -> None:
        *way, last = keys
        for key in way:
            found = found[key]
        if value is ...:
            del found[last]
        else:
            found[last] = value

    return change


def nested(depth: int) -> list[Any]:
    root: list[Any] = []
    for _ in range(depth):
        root = [root]
    return root


PARTS = [("model",), ("data",), ("data", "config"), ("orientation",), ("head",), ("downstream",)]
DAMAGE: dict[str, Change] = {
    **{
        f"no {'/'.join(keys)}": at(*keys)
        for keys in PARTS
        if keys not in [("head",), ("downstream",)]
    },
    **{f"{'/'.join(keys)} is text": at(*keys, value=7) for keys in PARTS},
    **{f"{'/'.join(keys)} is a list": at(*keys, value=[1]) for keys in PARTS},
    **{f"{'/'.join(keys)} is none": at(*keys, value=None) for keys in PARTS[:3]},
    "deep": at("data", "more", value=nested(200)),
    "stride 0": at("data", "config", "stride_within_seq", value=0),
    "stride nan": at("data", "config", "stride_between_seq", value=math.nan),
    "stride inf": at("data", "config", "stride_between_seq", value=math.inf),
    "patch 0": at("model", "patch_size", value=[0, 2, 2, 2]),
    "patch text": at("model", "patch_size", value="2222"),
    "unknown key": at("model", "exec", value="rm"),
    "key of another type": lambda found: found["model"].__setitem__(3, 4),
    "tr text": at("data", "tr", value=["x"]),
    "tr number": at("data", "tr", value=0.7),
    "spaces": at("data", "spaces", value=3),
    "contents": at("data", "training_contents", value=5),
    "inputs": at("data", "inputs", value=[1]),
    "measures": at("data", "inputs", "measures", value={"tr": [1]}),
    "measures text": at("data", "inputs", "measures", value={"tr": ["a", "b", "c"]}),
    "affine": at("data", "inputs", "grid_affine", value=[[1, 2], [3, 4]]),
    "affine 0": at("data", "inputs", "grid_affine", value=[[0.0] * 4] * 4),
    "mean": at("data", "inputs", "mean", value="zz"),
    "mean of another grid": at("data", "inputs", "mean", value="ff"),
    "mirror": at("data", "inputs", "mirror_gain", value=[math.nan] * 3),
    "target scaling": at("target_scaling", value=[1.0]),
    "target scaling text": at("target_scaling", value="ab"),
    "target scaling 0": at("target_scaling", value=[0.0, 0.0]),
    # sizes that only the file claims
    "depth": at("model", "depth", value=10**9),
    "width": at("model", "embed_dim", value=10**7),
    "image": at("model", "img_size", value=[2 * 10**6] * 4),
    "state": at("model", "d_state", value=10**9),
    "taps": at("model", "d_conv", value=10**9),
    "patch": at("model", "patch_size", value=[10**4] * 4),
    "classes": at("head", "out_features", value=10**9),
    "head's depth": at("head", "mamba_depth", value=10**9),
    "long number": at("model", "depth", value=10**500),
}


def test_undamaged(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", metadata())
    found = read_checkpoint(path).metadata
    assert found == metadata() and flags_of_metadata(found, True)["embed_dim"] == 16
    assert InputContract.from_metadata(found, "x").tr == (0.7,)
    assert neuromamba.load(path, "cpu").contract.describe()


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_one_line(tmp_path: Path, name: str) -> None:
    found = copy.deepcopy(metadata())
    DAMAGE[name](found)
    path = save(tmp_path / "x.ckpt", found)
    with pytest.raises(UserInputError) as caught:
        neuromamba.load(path, "cpu")
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 1000


@pytest.mark.parametrize("found", [None, "text", 5, [1, 2], torch.zeros(3)])
def test_metadata_that_are_none(tmp_path: Path, found: Any) -> None:
    with pytest.raises(UserInputError, match="metadata are"):
        read_checkpoint(save(tmp_path / "x.ckpt", found))


# ------------------------------------------------------------------------- sizes of files


def test_a_packed_record(tmp_path: Path) -> None:
    """What unpacks to gigabytes is not unpacked: torch never packs."""
    path, packed = save(tmp_path / "x.ckpt", metadata()), tmp_path / "packed.ckpt"
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.namelist():
            new.writestr(record, old.read(record))
        new.writestr("archive/data/999", bytes(1 << 24))
    with pytest.raises(UserInputError, match="is packed"):
        read_checkpoint(packed)


@pytest.mark.parametrize("ranks", [10**12, 0, -1, "2", None, 2.5, True])
def test_ranks_that_a_folder_claims(tmp_path: Path, ranks: Any) -> None:
    folder = tmp_path / "best.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    states = {
        "module": {},
        "buffer_names": [],
        "param_shapes": [],
        "shared_params": {},
        "dp_world_size": ranks,
        "ds_config": {"zero_optimization": {"stage": 1}},
    }
    torch.save(states, folder / "checkpoint" / "mp_rank_00_model_states.pt")
    with pytest.raises(UserInputError, match=r"dp_world_size|of rank 0, 1, 2|of rank 0"):
        open_zero(folder, "--load_model_path")


YAML = {
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "doubled": "a: &a [x, x]\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
    ),
    "circular": "a: &a [*a]",
    "long number": "a: " + "9" * 4000,
    "date": "a: 2024-13-45",
    "code": "a: !!python/object/apply:os.system [ls]",
}


@pytest.mark.parametrize("name", sorted(YAML))
def test_yaml_without_end(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.yaml").write_text(YAML[name])
    with pytest.raises(UserInputError, match="is not valid YAML") as caught:
        read_yaml(tmp_path / "x.yaml", "--config")
    assert "\n" not in str(caught.value)
