"""Checkpoints as they go wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.checkpoints.paths import safetensors_in
from tests.helpers.corpus.bad_file import BadFile, Call


def checkpoint(content: bytes, name: str = "m.ckpt") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read_checkpoint(folder / name)

    return read


def saved(content: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        torch.save(content, folder / "m.ckpt")
        return read_checkpoint(folder / "m.ckpt")

    return read


def tensors(**state: torch.Tensor) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        save_file(state, folder / "m.safetensors")
        return read_checkpoint(folder / "m.safetensors")

    return read


def index(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "model.safetensors.index.json").write_bytes(content)
        return safetensors_in(folder, "--load_model_path")

    return read


_NAN = torch.tensor([1.0, float("nan")])
CHECKPOINTS = (
    BadFile("empty checkpoint", checkpoint(b""), "m.ckpt"),
    BadFile("text as checkpoint", checkpoint(b"hello"), "its bytes cannot be decoded, KeyError)"),
    BadFile("letter as checkpoint", checkpoint(b"e"), "its bytes cannot be decoded, IndexError)"),
    BadFile("page of a login as checkpoint", checkpoint(b"<html>Login</html>"), "m.ckpt"),
    BadFile("checkpoint that runs a program", checkpoint(pickle.dumps(Call())), "m.ckpt"),
    BadFile("safetensors cut off", checkpoint(b"\xff" * 9, "m.safetensors"), "m.safetensors"),
    BadFile("safetensors of 2^60 bytes", checkpoint(b"\0" * 7 + b"\x10{}", "m.safetensors"),
            "m.safetensors"),
    BadFile("weight that is no number", tensors(w=_NAN), "'w'"),
    BadFile("weight that is infinite", tensors(w=torch.tensor([float("inf")])), "'w'"),
    BadFile("weights that diverged", saved({"state_dict": {"model.w": _NAN}}), "'w'"),
    BadFile("index that is no JSON", index(b"{"), "no weight_map"),
    BadFile("index nested without end", index(b"[" * 100_000), "no weight_map"),
    BadFile("index of another folder", index(b'{"weight_map": {"w": "../x.pt"}}'), "index"),
    BadFile("index of a file that is absent", index(b'{"weight_map": {"w": "x.safetensors"}}'),
            "is not there"),
)  # fmt: skip
