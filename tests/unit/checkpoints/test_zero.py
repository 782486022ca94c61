"""DeepSpeed's folders: real ones by the reference's own tools, and what is refused of them."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuromamba.checkpoints.files import read_file
from neuromamba.checkpoints.io import (
    canonical_name,
    check_readable,
    load_backbone,
    read_checkpoint,
    read_metadata,
    read_training_state,
)
from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.build import build_model
from tests.golden.make_lightning19 import MODEL
from tests.helpers.paths import GOLDEN

LIGHTNING19 = GOLDEN / "lightning19"
# Name -> stage, ranks.
FOLDERS = {
    "stage1_bf16": (1, 2),
    "stage1_bf16_frozen": (1, 2),
    "stage2_fp32": (2, 3),
    "stage3_bf16": (3, 2),
    "stage3_bf16_frozen": (3, 3),
}


@pytest.fixture(autouse=True)
def no_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading needs none, and none of its classes are told to torch."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setattr(torch._weights_only_unpickler, "_marked_safe_globals_set", set())


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A folder of the above, to be damaged."""

    def made(name: str) -> Path:
        return shutil.copytree(LIGHTNING19 / name, tmp_path / "best.ckpt")

    return made


def refusal(path: Path, call: Callable[..., Any] = read_checkpoint) -> str:
    with pytest.raises(UserInputError) as caught:
        call(path, "--load_model_path")
    message = str(caught.value)
    assert message.startswith("--load_model_path: ") and "best.ckpt" in message
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_those_in_memory(name: str) -> None:
    """Against what DeepSpeed itself gave out when the training had ended."""
    with np.load(LIGHTNING19 / name / "weights.npz") as file:
        expected = {canonical_name(key): file[key] for key in file.files}
    contents = read_checkpoint(LIGHTNING19 / name)
    assert set(contents.state_dict) == set(expected)
    for key, value in expected.items():
        assert np.array_equal(contents.state_dict[key].float().numpy(), value), key
    stage, ranks = FOLDERS[name]
    assert contents.origin == f"DeepSpeed, ZeRO stage {stage}, {ranks} rank(s)"
    assert contents.progress == {"epoch": 1, "global_step": 8 // ranks if ranks == 2 else 3}
    assert contents.metadata == {} and read_metadata(LIGHTNING19 / name) == {}
    check_readable(LIGHTNING19 / name)


@pytest.mark.parametrize("name", FOLDERS)
def test_fp32_is_preferred_where_there_is_some(name: str) -> None:
    """Trained weights are not those of bf16; frozen ones and buffers were never more."""
    state = read_checkpoint(LIGHTNING19 / name).state_dict
    trained = [k for k in state if k.startswith("head.") == name.endswith("frozen")]
    trained = [k for k in trained if k != "embedder.pos"]
    assert all(state[key].dtype == torch.float32 for key in trained)
    finer = [k for k in trained if not torch.equal(state[k].bfloat16().float(), state[k])]
    assert len(finer) == len(trained)


@pytest.mark.parametrize("name", [name for name in FOLDERS if "frozen" not in name])
def test_backbone_loads_strictly(name: str) -> None:
    torch.manual_seed(5)
    backbone = build_model(MODEL)
    load_backbone(backbone, LIGHTNING19 / name)
    with np.load(LIGHTNING19 / name / "weights.npz") as file:
        for key in file.files:
            loaded = backbone.state_dict()[canonical_name(key)]
            assert np.array_equal(loaded.numpy(), file[key]), key


def test_the_folder_may_be_named_in_other_ways(copy: Callable[[str], Path]) -> None:
    path = copy("stage3_bf16")
    state = read_checkpoint(path).state_dict

    def same(other: Path) -> bool:
        read = read_checkpoint(other).state_dict
        return all(torch.equal(read[k], state[k]) for k in state)

    assert same(path / "checkpoint")
    (path / "latest").unlink()
    assert same(path)
    run = path.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    path.rename(run / "checkpoints" / "last.ckpt")
    assert same(run) and same(run / "checkpoints")
    assert find_checkpoint(run) == run / "checkpoints" / "last.ckpt"


def test_training_state() -> None:
    state = read_training_state(LIGHTNING19 / "stage2_fp32")
    assert (state.zero_stage, state.ranks) == (2, 3)
    assert state.contents["pytorch-lightning_version"] == "1.9.5"
    assert "fit_loop" in state.contents["loops"]


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("call", [read_checkpoint, check_readable, read_metadata])
@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        ("stage1_bf16", "bf16_zero_pp_rank_1_*", "optimiser states of rank 1 are missing, of 2"),
        ("stage2_fp32", "zero_pp_rank_0_*_optim*", "optimiser states of rank 0 are missing, of 3"),
        ("stage1_bf16", "mp_rank_00_model_states.pt", "no file *_model_states.pt"),
        ("stage3_bf16_frozen", "zero_pp_rank_2_*_model*", "model states of rank 2 are missing"),
        ("stage3_bf16_frozen", "zero_pp_rank_0_*_model*", "model states of rank 0 are missing"),
        ("stage3_bf16_frozen", "bf16*", "optimiser states of rank 0, 1, 2 are missing, of 3"),
    ],
)
def test_missing_files(
    copy: Callable[[str], Path], call: Callable[..., Any], name: str, gone: str, words: str
) -> None:
    path = copy(name)
    for file in (path / "checkpoint").glob(gone):
        file.unlink()
    if words.startswith("no file") and call is not check_readable:
        words = "'latest' names 'checkpoint', where no file *_model_states.pt is"
    assert words in refusal(path, call) or "'latest' names 'checkpoint'" in refusal(path, call)


@pytest.mark.parametrize("call", [read_checkpoint, check_readable])
@pytest.mark.parametrize("pattern", ["*optim_states.pt", "*model_states.pt"])
@pytest.mark.parametrize("name", ["stage1_bf16", "stage3_bf16_frozen"])
@pytest.mark.parametrize("kind", ["cut", "empty", "byte"])
def test_damaged_files(
    copy: Callable[[str], Path], call: Callable[..., Any], pattern: str, name: str, kind: str
) -> None:
    path = copy(name)
    file = sorted((path / "checkpoint").glob(pattern))[-1]
    raw = bytearray(file.read_bytes())
    if kind == "byte":
        with zipfile.ZipFile(file) as archive:
            record = max(
                (info for info in archive.infolist() if "/data/" in info.filename),
                key=lambda info: info.file_size,
            )
            raw[raw.index(archive.read(record)) + record.file_size // 2] ^= 1
    file.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "byte": raw}[kind])
    message = refusal(path, call)
    assert "damaged" in message and file.name in message
    assert ("check sum" in message) == (kind == "byte")


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a file holds; the stand-ins of what is not read do not go back."""
    content = read_file(file)
    optimiser = content.get("optimizer_state_dict", {})
    for key in ("loss_scaler", "zero_stage", "param_slice_mappings"):
        optimiser.pop(key, None)
    change(content)
    torch.save(content, file)


@pytest.mark.parametrize(
    ("name", "file", "change", "words"),
    [
        # A rank's share is of an earlier saving than the model.
        (
            "stage1_bf16",
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
            lambda c: c["optimizer_state_dict"]["single_partition_of_fp32_groups"][0].data.mul_(2),
            "weights differ from the model's, such as model.",
        ),
        (
            "stage2_fp32",
            "zero_pp_rank_1_mp_rank_00_optim_states.pt",
            lambda c: c["optimizer_state_dict"]["base_optimizer_state"]["state"][0]["step"].add_(1),
            "their optimisers stand at different steps",
        ),
        (
            "stage3_bf16",
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
            lambda c: c["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]["step"].add_(1),
            "their optimisers stand at different steps",
        ),
        (
            "stage3_bf16",
            "zero_pp_rank_1_mp_rank_00_model_states.pt",
            lambda c: c.update(global_steps=7),
            "zero_pp_rank_1_mp_rank_00_model_states.pt is of another step than the first rank's",
        ),
        (
            "stage2_fp32",
            "zero_pp_rank_0_mp_rank_00_optim_states.pt",
            lambda c: c["optimizer_state_dict"].update(partition_count=[4, 4]),
            "one is of 4 ranks, the model of 3",
        ),
    ],
)
def test_files_of_different_savings(
    copy: Callable[[str], Path],
    name: str,
    file: str,
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    path = copy(name)
    rewrite(path / "checkpoint" / file, lambda content: None)
    read_checkpoint(path)  # written anew, it is still the same
    rewrite(path / "checkpoint" / file, change)
    for call in (read_checkpoint, check_readable):
        message = refusal(path, call)
        assert "were not saved together" in message
        assert words.replace("model.", "") in message.replace("_forward_module.model.", "")


def test_other_contents(copy: Callable[[str], Path]) -> None:
    path = copy("stage2_fp32")
    model = path / "checkpoint" / "mp_rank_00_model_states.pt"
    shards = sorted((path / "checkpoint").glob("*optim_states.pt"))
    shutil.copy(shards[0], shards[0].with_name(shards[0].name.replace("rank_0_", "rank_3_")))
    assert "optimiser states of rank 3, but 3 saved it" in refusal(path)
    shards[0].with_name(shards[0].name.replace("rank_0_", "rank_3_")).unlink()

    rewrite(shards[2], lambda c: c["optimizer_state_dict"].pop("single_partition_of_fp32_groups"))
    assert "KeyError: 'single_partition_of_fp32_groups'" in refusal(path)

    for twin in ("bf16_" + shards[1].name, "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        shutil.copy(shards[1], shards[1].with_name(twin))
        assert "were not saved together" in refusal(path)
        shards[1].with_name(twin).unlink()

    part = model.with_name("mp_rank_01_model_states.pt")
    shutil.copy(model, part)
    assert "model parallelism, which is not read" in refusal(path)
    part.unlink()

    rewrite(model, lambda c: c.pop("param_shapes"))
    assert "no param_shapes in mp_rank_00_model_states.pt" in refusal(path)
    (path / "latest").write_text("../elsewhere")
    assert "'latest' names '../elsewhere', where no file" in refusal(path)


def test_a_shard_is_not_a_checkpoint() -> None:
    for file in (LIGHTNING19 / "stage1_bf16" / "checkpoint").iterdir():
        with pytest.raises(UserInputError, match=r"is one file of a DeepSpeed checkpoint"):
            read_checkpoint(file)


def test_foreign_objects_in_a_shard_are_not_made(copy: Callable[[str], Path]) -> None:
    path = copy("stage1_bf16")
    file = path / "checkpoint" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    rewrite(file, lambda c: c.update(extra=re.compile("a")))
    assert "re._compile" in refusal(path) and "would run code" in refusal(path)


def test_members_of_enumerations_as_early_python_3_11_stored_them(tmp_path: Path) -> None:
    """They were fetched with ``getattr``; nothing is fetched here."""
    name = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01c__builtin__\ngetattr\nq\x02"
    enum = b"cdeepspeed.runtime.zero.config\nZeroStageEnum\nq\x03X\x07\x00\x00\x00weightsq\x04"
    torch.save({"a": 1}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for record, data in records.items():
            pickled = name + enum + b"\x86q\x05Rq\x06s." if record.endswith("data.pkl") else data
            archive.writestr(record, pickled)
    assert list(read_file(tmp_path / "x.pt")) == ["a"]
