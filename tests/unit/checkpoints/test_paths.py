"""Which checkpoint a folder means, and which files are whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from neuromamba.checkpoints.io import check_readable, read_checkpoint
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.errors import UserInputError

WEIGHTS = {"norm.weight": torch.arange(1000.0)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with best, last and one more."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text("{}")
    for name in ("best", "last", "epoch=1-step=4"):
        torch.save(WEIGHTS, folder / f"{name}.ckpt")
    return folder.parent


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserInputError) as caught:
        call(*arguments, "--flag")
    message = str(caught.value)
    assert message.startswith("--flag: ") and "\n" not in message
    return message


def test_a_run_means_its_best(run: Path) -> None:
    folder = run / "checkpoints"
    for path in (run, folder, folder / "best.ckpt"):
        assert find_checkpoint(path) == folder / "best.ckpt"
    assert find_checkpoint(folder / "last.ckpt") == folder / "last.ckpt"
    assert find_checkpoint(run, names=("last.ckpt",)) == folder / "last.ckpt"
    (folder / "best.ckpt").unlink()
    assert find_checkpoint(run) == find_checkpoint(folder) == folder / "last.ckpt"


def test_no_guess_among_others(run: Path) -> None:
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.ckpt").unlink()
    message = refusal(find_checkpoint, run)
    assert "without best.ckpt and last.ckpt; name one of epoch=1-step=4.ckpt." in message
    (run / "checkpoints" / "epoch=1-step=4.ckpt").unlink()
    assert "there is no checkpoint in it" in refusal(find_checkpoint, run)
    assert "there is no file 'nowhere'" in refusal(find_checkpoint, "nowhere")


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    save_file(WEIGHTS, folder / "a.safetensors")
    assert torch.equal(read_checkpoint(folder).state_dict["norm.weight"], WEIGHTS["norm.weight"])
    check_readable(folder)
    save_file({"head.bias": torch.ones(2)}, folder / "b.safetensors")
    message = refusal(read_checkpoint, folder)
    assert "holds 2 files and no model.safetensors.index.json; name one of a.safetensors" in message

    index = folder / "model.safetensors.index.json"
    places = {"norm.weight": "a.safetensors", "head.bias": "b.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    assert set(read_checkpoint(folder).state_dict) == set(places)
    check_readable(folder)
    (folder / "b.safetensors").unlink()
    assert "'b.safetensors' of its index is not there" in refusal(read_checkpoint, folder)
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    assert "of its index is not there" in refusal(read_checkpoint, folder)
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        assert "no weight_map in it" in refusal(read_checkpoint, folder)


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    """torch itself loads such a file without a word."""
    path = tmp_path / "a.ckpt"
    torch.save(WEIGHTS, path)
    check_readable(path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(WEIGHTS["norm.weight"].numpy().tobytes()[400:800]) + 100] ^= 1
    path.write_bytes(raw)
    assert not torch.equal(torch.load(path)["norm.weight"], WEIGHTS["norm.weight"])
    for call in (check_readable, read_checkpoint):
        assert "the check sum of 'a/data/0' is wrong" in refusal(call, path)


def test_files_without_check_sums_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(before)
    check_readable(path)
    assert torch.equal(read_checkpoint(path).state_dict["norm.weight"], WEIGHTS["norm.weight"])


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "old.ckpt"])
def test_cut_files_are_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=name != "old.ckpt")
    check_readable(path)
    raw = path.read_bytes()
    for size in (0, 3, 60, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        assert "damaged" in refusal(check_readable, path)
    path.unlink()
    assert "there is no file" in refusal(check_readable, path)
    path.mkdir()
    assert "no file *_model_states.pt in it" in refusal(check_readable, path)
