"""Every kind of checkpoint, trained by two processes, is read by one, and used by others.

What is read is compared with the fp32 weights that DeepSpeed gave out in the training processes
(``ranks_program.KeepMasters``), and with its own zero_to_fp32.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from neuromamba.checkpoints.io import (
    check_readable,
    load_strictly,
    read_checkpoint,
    read_metadata,
    read_training_state,
)
from neuromamba.commands.export import main as export
from neuromamba.commands.train import run
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.serialise import from_dict, read_yaml
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from tests.helpers.preloaded import preloaded_python
from tests.helpers.ranks import (
    HAS_DEEPSPEED,
    Runs,
    needs_deepspeed,
    once,
    write_uneven_store,
)

FLAGS = (
    "--dataset_name Dummy --img_size 12 12 12 4 --patch_size 6 6 6 2 --embed_dim 16 --depth 2 "
    "--train_split 0.6 --val_split 0.2 --accelerator cpu --max_epochs 2 --learning_rate 1e-2 "
    "--batch_size 4"
)
PRETRAIN = "--pretraining --use_autoregressive"
KINDS = {
    "pretrained": PRETRAIN,
    "full": "--downstream_task sex --clf_head_version mamba",
    "frozen": "--downstream_task sex --freeze_feature_extractor",
    "value": "--downstream_task age --downstream_task_type regression --freeze_feature_extractor",
}
PRECISIONS = {
    "32": "",
    "bf16": "--precision bf16",
    "autocast": "--precision bf16 --deepspeed_autocast",
}
# Cosine restarts: the last epoch is worse than the one before.
WORSE = f"{PRETRAIN} --max_epochs 4 --learning_rate 0.03 --embed_dim 256 --depth 1 --cycle 0.75"

Case = tuple[str, str, str]  # strategy, kind, precision
FAST: tuple[Case, ...] = (
    ("ddp", "full", "32"),
    ("deepspeed_stage_1", "frozen", "bf16"),
    ("deepspeed_stage_2", "full", "32"),
    ("deepspeed_stage_3", "frozen", "32"),
    ("deepspeed_stage_3", "pretrained", "bf16"),
)
USED = (
    (FAST[0], "deepspeed_stage_3"),
    (FAST[2], "deepspeed_stage_3"),
    (FAST[3], "ddp"),
    (FAST[3], "deepspeed_stage_1"),
)
ALL: tuple[Case, ...] = tuple(
    (strategy, kind, precision)
    for strategy in ("ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
    for kind in ("pretrained", "full", "frozen")
    for precision in (("32", "bf16") if strategy == "ddp" else ("32", "bf16", "autocast"))
    if (strategy, kind, precision) not in FAST
)
THREE: tuple[Case, ...] = tuple(
    (f"deepspeed_stage_{stage}", kind, "bf16") for stage in (1, 2, 3) for kind in ("full", "value")
)


def names(case: Case) -> str:
    return "_".join(case)


def marked(cases: tuple[Case, ...], ranks: int, *marks: pytest.MarkDecorator) -> list:
    return [
        pytest.param(
            (case, ranks),
            id=f"{names(case)}_{ranks}",
            marks=[*marks, *([needs_deepspeed] if case[0] != "ddp" else [])],
        )
        for case in cases
    ]


EVERY = [
    *marked(FAST, 2),
    *marked(ALL, 2, pytest.mark.slow),
    *marked(THREE, 3, pytest.mark.slow),
]


def lines(cases: tuple[Case, ...]) -> dict[str, str]:
    possible = [case for case in cases if HAS_DEEPSPEED or case[0] == "ddp"]
    return {
        names(case): f"--strategy {case[0]} {KINDS[case[1]]} {PRECISIONS[case[2]]}"
        for case in possible
    }


class Trained:
    """Trainings made when first asked for, each set of them in one call of torchrun."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.store = once(factory, "uneven", write_uneven_store)

    def of(self, name: str, ranks: int, jobs: dict[str, str]) -> Runs:
        def make(folder: Path) -> None:
            placed = {name: line.format(folder=folder) for name, line in jobs.items()}
            Runs(self.store, folder).carry_out(ranks, placed, FLAGS)

        return Runs(self.store, once(self.factory, name, make))

    def case(self, wanted: tuple[Case, int]) -> tuple[Runs, str]:
        case, ranks = wanted
        if ranks == 3:
            return self.of("kinds_on_three", 3, lines(THREE)), names(case)
        if case in FAST:
            return self.fast(), names(case)
        return self.of("all_kinds", 2, lines(ALL)), names(case)

    def fast(self) -> Runs:
        return self.of("kinds", 2, lines(FAST) | worse() | uses())


def worse() -> dict[str, str]:
    stages = ("ddp", *(("deepspeed_stage_1", "deepspeed_stage_3") if HAS_DEEPSPEED else ()))
    return {f"worse_{strategy}": f"--strategy {strategy} {WORSE}" for strategy in stages}


def uses() -> dict[str, str]:
    """What was trained by one strategy, used by another."""
    if not HAS_DEEPSPEED:
        return {}
    jobs = {
        f"{names(case)}_by_{strategy}": (
            f"--test_only --test_ckpt_path {{folder}}/{names(case)} --strategy {strategy}"
        )
        for case, strategy in USED
    }
    start = f"--load_model_path {{folder}}/{names(FAST[4])}/checkpoints --max_steps 1"
    jobs["start"] = f"{start} --strategy deepspeed_stage_3 {KINDS['frozen']}"
    return jobs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Here there is one process, without DeepSpeed, in an empty folder."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setattr(torch._weights_only_unpickler, "_marked_safe_globals_set", set())
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def canonical(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("model."): array for name, array in arrays.items()}


def predictions(folder: Path) -> list[list[str]]:
    with open(folder / "predictions.csv", newline="") as stream:
        return list(csv.reader(stream))


def assert_same_predictions(one: Path, other: Path, within: float) -> None:
    first, second = predictions(one), predictions(other)
    assert len(first) == len(second) > 10 and first[0] == second[0]
    for row, again in zip(first[1:], second[1:], strict=True):
        assert row[:3] == again[:3]
        assert [*map(float, row[3:])] == pytest.approx([*map(float, again[3:])], abs=within)


@pytest.mark.parametrize("wanted", EVERY)
def test_weights_are_those_of_the_training(trained: Trained, wanted: tuple[Case, int]) -> None:
    """Every tensor, to the last bit, loads strictly into the model that the metadata describes."""
    runs, name = trained.case(wanted)
    path = runs.folder / name / "checkpoints" / "last.ckpt"
    check_readable(path)
    contents, expected = read_checkpoint(path), canonical(runs.masters(name))
    assert set(contents.state_dict) == set(expected)
    for key, array in expected.items():
        assert np.array_equal(contents.state_dict[key].float().numpy(), array), key
    metadata = read_metadata(path)
    assert (
        metadata == contents.metadata
        and metadata["ranks"] == wanted[1]
        and metadata["code_version"]
    )
    model = from_dict(ModelConfig, metadata["model"], "metadata")
    state = contents.state_dict
    backbone = build_model(model, output_layer="pretrain" in metadata)
    head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    load_strictly(backbone, {k: v for k, v in state.items() if not k.startswith("head.")}, path)
    assert ("head" in metadata) == bool(head)
    if head:
        load_strictly(
            build_head(from_dict(HeadConfig, metadata["head"], "metadata"), model), head, path
        )
    found = read_training_state(path)
    stage = 0 if wanted[0][0] == "ddp" else int(wanted[0][0][-1])
    assert (found.zero_stage, found.ranks) == (stage, wanted[1])


@pytest.mark.parametrize("wanted", EVERY)
def test_one_process_predicts_as_the_training_did(
    trained: Trained,
    wanted: tuple[Case, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Best weights, named by the run folder; ``predictions.csv`` is what the ranks had written."""
    (_, kind, precision), _ = wanted
    runs, name = trained.case(wanted)
    if kind == "pretrained":
        # A backbone is used by going on from it.
        start = f"--load_model_path {runs.folder / name} --downstream_task sex --max_steps 1"
        run([*FLAGS.split(), "--image_path", str(runs.store), *start.split()])
        return
    again = ["--test_only", "--test_ckpt_path", str(runs.folder / name), "--accelerator", "cpu"]
    run([*again, "--output_dir", "again"])
    best = runs.folder / name / "checkpoints" / "best.ckpt"
    assert f"--test_ckpt_path: taking {best}\n" in capsys.readouterr().out
    assert read_yaml("again/config.yaml", "test")["test_ckpt_path"] == str(best)
    # bf16 was computed with on the ranks, fp32 here.
    within = 1e-5 if precision == "32" else 0.05 if kind != "value" else 5.0
    assert_same_predictions(runs.folder / name, tmp_path / "again", within)


@pytest.mark.parametrize("wanted", EVERY)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_exports_are_the_same(
    trained: Trained, wanted: tuple[Case, int], suffix: str, tmp_path: Path
) -> None:
    runs, name = trained.case(wanted)
    out = tmp_path / f"w{suffix}"
    assert export([str(runs.folder / name), str(out), "--keep_subject_keys"]) == 0
    source, written = read_checkpoint(runs.folder / name), read_checkpoint(out)
    assert set(source.state_dict) == set(written.state_dict)
    for key, tensor in source.state_dict.items():
        assert torch.equal(tensor.float(), written.state_dict[key]), key
    assert written.metadata == (source.metadata if suffix == ".safetensors" else {})


@needs_deepspeed
@pytest.mark.parametrize(
    "cases",
    [pytest.param(FAST, id="fast"), pytest.param(ALL, id="all", marks=pytest.mark.slow)],
)
def test_weights_are_those_of_zero_to_fp32(
    trained: Trained, cases: tuple[Case, ...], tmp_path: Path
) -> None:
    """DeepSpeed's own program, which only forgets what stage 1 has frozen."""
    zero = [case for case in cases if case[0] != "ddp"]
    program = (
        "import sys, numpy as np\n"
        "from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as get\n"
        "for number, folder in enumerate(sys.argv[1:]):\n"
        "    state = get(folder)\n"
        "    arrays = {k: v.detach().float().numpy() for k, v in state.items()}\n"
        "    np.savez(f'{number}.npz', **arrays)\n"
    )
    folders = []
    for case in zero:
        runs, name = trained.case((case, 2))
        folders.append(runs.folder / name / "checkpoints" / "best.ckpt")
    subprocess.run(
        [preloaded_python(), "-c", program, *map(str, folders)],
        check=True,
        capture_output=True,
        timeout=200,
        cwd=tmp_path,
    )
    for number, (case, folder) in enumerate(zip(zero, folders, strict=True)):
        with np.load(tmp_path / f"{number}.npz") as file:
            theirs = canonical(dict(file))
        ours = read_checkpoint(folder).state_dict
        missing = set(ours) - set(theirs)
        forgotten = {key for key in ours if not key.startswith("head.") and key != "embedder.pos"}
        assert missing == (forgotten if case[:2] == ("deepspeed_stage_1", "frozen") else set())
        for key, array in theirs.items():
            assert np.array_equal(ours[key].float().numpy(), array), (case, key)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_3"])
def test_the_best_weights_are_evaluated(trained: Trained, strategy: str) -> None:
    if strategy != "ddp" and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    runs, name = trained.fast(), f"worse_{strategy}"
    with open(runs.folder / name / "logs" / "metrics.csv", newline="") as stream:
        losses = [float(row["val/loss"]) for row in csv.DictReader(stream) if row["val/loss"]]
    epochs, final = losses[:4], runs.metrics(name)["val/loss"]
    assert len(epochs) == 4 and epochs[3] > min(epochs) + 1e-3
    assert final == pytest.approx(min(epochs), abs=1e-6)
    best, last = (
        read_checkpoint(runs.folder / name / "checkpoints" / f"{which}.ckpt")
        for which in ("best", "last")
    )
    assert best.progress["epoch"] == epochs.index(min(epochs)) and last.progress["epoch"] == 3
    parameters = sum(t.numel() for k, t in best.state_dict.items() if k != "embedder.pos")
    assert runs.metrics(name)["model/parameters"] == parameters


@needs_deepspeed
def test_other_strategies_use_them(trained: Trained) -> None:
    """Trained on two ranks by one strategy, used on two by the others."""
    runs = trained.fast()
    for case, strategy in USED:
        used = runs.folder / f"{names(case)}_by_{strategy}"
        assert_same_predictions(runs.folder / names(case), used, 1e-5)
    backbone = read_checkpoint(runs.folder / names(FAST[4])).state_dict
    moved = read_checkpoint(runs.folder / "start").state_dict  # frozen: as it was loaded
    for key in moved:
        if not key.startswith("head."):
            assert torch.equal(moved[key].float(), backbone[key].float()), key


@pytest.mark.parametrize("wanted", EVERY[: len(FAST)])
def test_one_process_cannot_go_on_from_two(
    trained: Trained, wanted: tuple[Case, int], refused: Callable[[str], str]
) -> None:
    runs, name = trained.case(wanted)
    (strategy, kind, precision), _ = wanted
    path = runs.folder / name / "checkpoints" / "last.ckpt"
    message = refused(
        f"{FLAGS} --image_path {runs.store} {KINDS[kind]} {PRECISIONS[precision]} "
        f"--resume_ckpt_path {path}"
    )
    saved = "a strategy other than DeepSpeed's" if strategy == "ddp" else f"--strategy {strategy}"
    assert f"'{path}' was saved by 2 processes with {saved}, and this run is 1 process" in message
    assert "--load_model_path" in message


@pytest.fixture
def refused() -> Callable[[str], str]:
    """The message of a command line that must fail."""

    def call(line: str) -> str:
        with pytest.raises(UserInputError) as caught:
            run([*line.split(), "--output_dir", "none"])
        assert not Path("none").exists()
        return str(caught.value)

    return call
