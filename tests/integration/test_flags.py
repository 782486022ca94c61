"""No flag is decoration: changing it changes a batch, a model, a loss, a file or the plan.

``CASES`` has an entry for every flag of ours, ``TRAINER`` one for every flag of Lightning's
Trainer; a flag without an entry fails ``test_every_flag_has_a_test``.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import yaml
from pytorch_lightning.trainer.states import RunningStage

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.commands.train import main, run
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.fmamba import trainer as trainer_module
from neuromamba.fmamba.dry_run import describe_plan
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.trainer_flags import SYNONYMS, TRAINER_FLAGS
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.ssd.types import CHUNK
from neuromamba.training import allocator
from neuromamba.training import fit as fit_module
from tests.helpers.paths import ROOT
from tests.helpers.tiny import SUBJECTS, CommandLine, Finished, write_tiny_run

AGE = "--downstream_task age"
NEXT = "--pretraining --use_autoregressive"
MIM = "--pretraining --use_mim"
SGD = "--optimizer SGD"
TWO_STORES = "--dataset_name Dummy S1200 --image_path {store} {other}"
OWN = "--label_csv own.csv --target_column group"
AUGMENT = "--augment_during_training"
FEATURES = ("feature_rank", "feature_std", "knn_subject")

# ------------------------------------------------------------------------- what can be observed


def subjects(cli: CommandLine, extra: str) -> Any:
    """Number of subjects in train, val and test."""
    data = cli.data(extra)
    return tuple(sum(map(len, data.subjects[part])) for part in ("train", "val", "test"))


def names(cli: CommandLine, extra: str) -> Any:
    """Subjects of each part."""
    return cli.data(extra).subjects


def windows(cli: CommandLine, extra: str) -> Any:
    """Number of windows in train, val and test."""
    data = cli.data(extra)
    return tuple(data.windows_in(part) for part in ("train", "val", "test"))


def loaders(cli: CommandLine, extra: str) -> Any:
    """How the training and validation windows are loaded."""
    data = cli.loaders(extra)
    train, val = data.train_dataloader(), data.val_dataloader()
    return (
        train.batch_size,
        val.batch_size,
        train.num_workers,
        train.pin_memory,
        train.persistent_workers,
        train.prefetch_factor,
    )


def cached(cli: CommandLine, extra: str) -> Any:
    """Training windows that the cache has room for."""
    cache = cli.loaders(extra).train_dataloader().dataset.cache
    return cache and cache.n_slots


def first_batch(data: FMRIDataModule) -> dict[str, Any]:
    return next(iter(data.train_dataloader()))


def batch(cli: CommandLine, extra: str) -> Any:
    """The first training batch, tensors as lists."""
    found = first_batch(cli.loaders(extra))

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.tolist()
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {key: plain(value) for key, value in found.items()}


def drawn(cli: CommandLine, extra: str) -> Any:
    """Which training windows an epoch draws."""
    return list(cli.loaders(extra).train_dataloader().sampler)


def targets_and_units(cli: CommandLine, extra: str) -> Any:
    """Target of each thing that is scored, and their names."""
    data = cli.data(extra)
    return data.targets_of_samples("test"), sorted(data.sample_names("test").values())


def unit_of_split(cli: CommandLine, extra: str) -> Any:
    """What is split."""
    return cli.data(extra).stores[0].grouping.split_unit


def targets(cli: CommandLine, extra: str) -> Any:
    """Target of every subject."""
    return cli.data(extra).stores[0].labels


def tokens(cli: CommandLine, extra: str) -> Any:
    """Kept tokens of each sample of a batch, and the values of the first token."""
    module = cli.module(extra)
    planned = module.on_before_batch_transfer(first_batch(cli.loaders(extra)), 0)
    packed = module.pack(planned)
    return packed.lengths, packed.tokens.shape[1], packed.tokens[0].tolist()


def kept(cli: CommandLine, extra: str) -> Any:
    """Kept tokens of each sample of a batch."""
    return tokens(cli, extra)[0]


def shapes(cli: CommandLine, extra: str) -> Any:
    """Parameters and buffers of the model and their shapes."""
    return {key: tuple(value.shape) for key, value in cli.module(extra).state_dict().items()}


def trainable(cli: CommandLine, extra: str) -> Any:
    """Parameters that training changes."""
    return {key for key, value in cli.module(extra).named_parameters() if value.requires_grad}


def encoding(cli: CommandLine, extra: str) -> Any:
    """The positional encoding of the first tokens."""
    pos = cli.module(extra).model.embedder.pos
    return None if pos is None else pos[0, :3].tolist()


def backends(cli: CommandLine, extra: str) -> Any:
    """Implementations of the scan in the layers."""
    layers = (m for m in cli.module(extra).modules() if isinstance(m, Mamba2))
    return {layer.ssd_backend for layer in layers}


def optimiser(cli: CommandLine, extra: str) -> Any:
    """Kind of optimiser and the settings of its first group."""
    configured = cli.module(extra).configure_optimizers()
    found = configured["optimizer"] if isinstance(configured, dict) else configured
    group = {k: v for k, v in found.param_groups[0].items() if k != "params"}
    return type(found).__name__, group


def rates(cli: CommandLine, extra: str) -> Any:
    """Learning rate of each of 100 steps."""
    configured = cli.module(extra, steps=100).configure_optimizers()
    if not isinstance(configured, dict):
        return [configured.param_groups[0]["lr"]] * 100
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def peak_rate(cli: CommandLine, extra: str) -> Any:
    """Highest learning rate."""
    return max(rates(cli, extra))


def loss(cli: CommandLine, extra: str) -> Any:
    """Training loss of the third optimiser step of a real run."""
    return cli.run(f"--max_steps 3 --no-use_scheduler {extra}").metrics["train/loss"]


def steps(cli: CommandLine, extra: str) -> Any:
    """Optimiser steps taken by a real run."""
    return cli.run(extra).metrics["train/steps"]


def files(cli: CommandLine, extra: str) -> Any:
    """Files a real run leaves in its folder."""
    return cli.run(extra).files


def objective(cli: CommandLine, extra: str) -> Any:
    """What the plan says is trained."""
    return describe_plan(cli.planned(extra)).splitlines()[0].removeprefix("objective").strip()


# ------------------------------------------------------------------------- the flags of ours


@dataclass(frozen=True)
class Case:
    """One way to see a flag.

    Attributes:
        changed: the flag with a value that is not its default.
        observe: what is looked at.
        base: flags given with and without the change.
        expected: what is observed with the change; None: anything but what is seen without it.
    """

    changed: str
    observe: Callable[[CommandLine, str], Any]
    base: str = ""
    expected: Any = None


CASES: dict[str, Case] = {
    # run
    "seed": Case("--seed 7", loss),
    "save_every_checkpoints": Case("--save_every_checkpoints", files),
    "every_n_train_steps": Case("--every_n_train_steps 4", files),
    "scalability_check": Case("--scalability_check", files),
    "use_early_stopping": Case(
        "--use_early_stopping --early_stopping_patience 2",
        steps,
        "--max_epochs 4 --learning_rate 1e-12",
        expected=3 * 9,
    ),
    "early_stopping_patience": Case(
        "--early_stopping_patience 1",
        steps,
        "--max_epochs 4 --learning_rate 1e-12 --use_early_stopping",
        expected=2 * 9,
    ),
    "save_embedding": Case("--save_embedding", files),
    # data
    "dataset_name": Case("--dataset_name Dummy S1200 --image_path {store} {other}", windows, NEXT),
    "image_path": Case("--image_path {other}", batch),
    "img_size": Case("--img_size 12 12 12 6", windows, expected=(24, 8, 8)),
    "stride_between_seq": Case("--stride_between_seq 0.5", windows, expected=(60, 20, 20)),
    "stride_within_seq": Case("--stride_within_seq 2", windows, expected=(12, 4, 4)),
    "input_scaling_method": Case("--input_scaling_method minmax_zeroback", tokens),
    "dataset_split_num": Case("--dataset_split_num 2", names),
    "train_split": Case("--train_split 0.7", subjects, expected=(14, 4, 2)),
    "val_split": Case("--val_split 0.1", subjects, expected=(12, 2, 6)),
    "batch_size": Case("--batch_size 5", loaders, expected=(5, 5, 0, False, False, None)),
    "eval_batch_size": Case("--eval_batch_size 7", loaders, expected=(4, 7, 0, False, False, None)),
    "num_workers": Case("--num_workers 1", loaders, expected=(4, 4, 1, False, True, 2)),
    "pin_memory": Case("--pin_memory", loaders, expected=(4, 4, 0, True, False, None)),
    "persistent_workers": Case(
        "--no-persistent_workers", loaders, "--num_workers 1", expected=(4, 4, 1, False, False, 2)
    ),
    "prefetch_factor": Case(
        "--prefetch_factor 3", loaders, "--num_workers 1", expected=(4, 4, 1, False, True, 3)
    ),
    "window_cache": Case("--window_cache 0.0002", cached),
    "limit_training_samples": Case("--limit_training_samples 0.5", subjects, expected=(6, 4, 4)),
    "limit_validation_samples": Case("--limit_validation_samples 3", subjects, expected=(12, 3, 4)),
    "limit_test_samples": Case("--limit_test_samples 0.25", subjects, expected=(12, 4, 1)),
    "num_train_fMRI_segments": Case("--num_train_fMRI_segments 1", windows, expected=(12, 12, 12)),
    "bad_subj_path": Case("--bad_subj_path {bad}", names),
    "shuffle_time_sequence": Case("--shuffle_time_sequence", batch),
    "include_valid_to_train": Case("--include_valid_to_train", subjects, expected=(16, 0, 4)),
    "group_by": Case("--group_by run", unit_of_split, expected="run"),
    "family_column": Case("--family_column family", names),
    "stratify_by": Case("--stratify_by diagnosis", names),
    "match_on": Case("--match_on skew", subjects),
    "match_caliper": Case("--match_caliper 5", subjects, "--match_on skew"),
    "dataset_weights": Case("--dataset_weights 1 3", drawn, f"{NEXT} {TWO_STORES}"),
    "balanced_sampling": Case("--balanced_sampling", drawn, OWN),
    "augment_during_training": Case(AUGMENT, tokens),
    "augment_only_affine": Case("--augment_only_affine", tokens, AUGMENT),
    "augment_only_intensity": Case("--augment_only_intensity", tokens, AUGMENT),
    "augment_strength": Case("--augment_strength 0.5", tokens, AUGMENT),
    # model
    "embed_dim": Case("--embed_dim 32", shapes),
    "depth": Case("--depth 2", shapes),
    "d_state": Case("--d_state 8", shapes),
    "headdim": Case("--headdim 8", shapes),
    "dropout": Case("--dropout 0.5", loss),
    "patch_size": Case("--patch_size 6 6 6 4", shapes),
    "mamba_pe_method": Case("--mamba_pe_method none", encoding),
    "keep_background": Case("--keep_background", kept, expected=(16, 16, 16, 16)),
    "union_mask": Case("--union_mask", kept, expected=(12, 12, 12, 12)),
    "ssd_backend": Case("--ssd_backend reference", backends, expected={"reference"}),
    # objective
    "pretraining": Case(NEXT, objective, expected="pre-training, next token"),
    "use_autoregressive": Case(NEXT, objective, expected="pre-training, next token"),
    "use_mim": Case(MIM, objective, expected="pre-training, masked tokens (random, 0.75)"),
    "mask_ratio": Case("--mask_ratio 0.3", loss, MIM),
    "masking_type": Case("--masking_type temporal", loss, MIM),
    "downstream_task": Case("--downstream_task diagnosis", targets),
    "class_weights": Case("--class_weights balanced", loss, OWN),
    "label_csv": Case(OWN, targets),
    "subject_column": Case("--subject_column twin", targets, OWN),
    "target_column": Case("--target_column hand", targets, OWN),
    "target_classes": Case("--target_classes b a", targets, OWN),
    "events": Case("--events events.tsv", targets_and_units),
    "event_delay": Case("--event_delay 4", windows, "--events events.tsv", expected=(24, 8, 8)),
    "clf_head_version": Case("--clf_head_version mamba", shapes),
    "head_dropout": Case("--head_dropout 0.5", loss),
    "freeze_feature_extractor": Case(
        "--freeze_feature_extractor",
        trainable,
        expected={"head.classifier.weight", "head.classifier.bias"},
    ),
    "label_smoothing": Case("--label_smoothing 0.4", loss),
    "label_scaling_method": Case("--label_scaling_method minmax", loss, AGE),
    "shuffle_labels": Case("--shuffle_labels 3", targets),
    # optimisation
    "optimizer": Case("--optimizer SGD", optimiser),
    "learning_rate": Case("--learning_rate 0.5", peak_rate, expected=0.5),
    "lr_scaling": Case("--lr_scaling", peak_rate, "--learning_rate 1", expected=4 / 1152),
    "weight_decay": Case("--weight_decay 0.3", optimiser),
    "momentum": Case("--momentum 0.5", optimiser, SGD),
    "use_scheduler": Case("--no-use_scheduler", rates, expected=[1e-4] * 100),
    "warmup": Case("--warmup 0.5", rates),
    "gamma": Case("--gamma 0.5", rates, "--cycle 0.5"),
    "cycle": Case("--cycle 0.5", rates),
    "min_lr_ratio": Case("--min_lr_ratio 0.5", rates),
    "grad_clip": Case("--grad_clip 1e-6", loss, f"{SGD} --learning_rate 1"),
    "gradient_accumulation_steps": Case("--gradient_accumulation_steps 2", steps, expected=5),
}

# Flags that a test of their own shows: name -> the test, entered by ``shows``.
OWN_TESTS: dict[str, Callable[..., None]] = {}


def shows(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enters a test as the one that shows these flags."""

    def enter(test: Callable[..., None]) -> Callable[..., None]:
        OWN_TESTS.update(dict.fromkeys(flags, test))
        return test

    return enter


def write_tables(cli: CommandLine) -> None:
    """A column of families and one that depends on the sex; labels of one's own; events."""
    numbers = range(SUBJECTS)
    rows = [f"sub-{i + 1:02d},{i // 3},{i + 9 * (i % 2)}" for i in numbers]
    text = "\n".join(["subject,family,skew", *rows]) + "\n"
    (cli.store / "metadata" / "more.csv").write_text(text)
    rows = [
        f"sub-{i + 1:02d};sub-{SUBJECTS - i:02d};{'abbb'[i % 4]};{'lr'[i // 5 % 2]}"
        for i in numbers
    ]
    text = "\n".join(["subject;twin;group;hand", *rows]) + "\n"
    (cli.folder / "own.csv").write_text(text)
    # 12 frames of 2 s; a window of 4 frames fits into each event, unless they are moved.
    events = "onset\tduration\ttrial_type\n0\t8\tface\n8\t8\thouse\n16\t8\tface\n"
    (cli.folder / "events.tsv").write_text(events)


@pytest.mark.parametrize("flag", CASES)
def test_flag_changes_something(cli: CommandLine, flag: str) -> None:
    case = CASES[flag]
    other = cli.folder / "other"
    shutil.copytree(cli.store, other)
    (other / "hdf5" / "sub-20.h5").unlink()
    (cli.folder / "bad.txt").write_text("01\nsub-02\n")
    write_tables(cli)
    places = {"store": cli.store, "other": other, "bad": cli.folder / "bad.txt"}
    changed, base = case.changed.format(**places), case.base.format(**places)
    assert f"--{flag}" in changed or f"--no-{flag}" in changed
    before = case.observe(cli, base)
    assert case.observe(cli, base) == before, "not reproducible: a change would show anyway"
    after = case.observe(cli, f"{base} {changed}")
    assert after != before
    if case.expected is not None:
        assert after == case.expected


def test_every_flag_has_a_test() -> None:
    ours = set(build_parser().known_flags()) - {"help"} - set(TRAINER_FLAGS)
    assert ours - set(CASES) - set(OWN_TESTS) == set()
    assert (set(CASES) | set(OWN_TESTS)) - ours == set(), "tests of flags that are no more"
    assert set(TRAINER_FLAGS) == set(TRAINER)


# What the table's observations cannot say ------------------------------------------------------


def test_a_smaller_sample_is_part_of_a_larger_one(cli: CommandLine) -> None:
    few, more = (set(names(cli, f"--limit_training_samples {n}")["train"][0]) for n in (4, 7))
    assert len(few) == 4 and len(more) == 7 and few < more


def test_bad_subjects_move_nobody(cli: CommandLine) -> None:
    before = names(cli, "")
    (cli.folder / "bad.txt").write_text("01\nsub-02\n")
    after = names(cli, "--bad_subj_path bad.txt")
    for part in before:
        assert set(after[part][0]) == set(before[part][0]) - {"sub-01", "sub-02"}


def test_shuffled_labels_stay_in_their_part(cli: CommandLine) -> None:
    data, shuffled = cli.data(), cli.data("--shuffle_labels 1")
    for part in ("train", "val", "test"):
        assert sorted(shuffled.targets_of_samples(part)) == sorted(data.targets_of_samples(part))
    assert shuffled.stores[0].labels != data.stores[0].labels


def test_schedule_of_the_paper(cli: CommandLine) -> None:
    curve = rates(cli, "--learning_rate 1")
    assert curve[0] == pytest.approx(0.01) and curve[5] == pytest.approx(1.0)
    assert np.argmax(curve) == 5, "5 % warm-up"
    assert curve[99] == pytest.approx(0.01, abs=1e-3)
    restarted = rates(cli, "--learning_rate 1 --cycle 0.5 --gamma 0.25 --warmup 0.1")
    assert restarted[5] == pytest.approx(1.0) and restarted[55] == pytest.approx(0.25)
    assert restarted[50] == pytest.approx(0.01)


@pytest.mark.parametrize("extra", ["", NEXT, "--include_valid_to_train"])
def test_only_training_batches_are_augmented(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    """Every one of them; and where nothing is learnt, evaluation gives what it gave without."""
    seen: list[tuple[RunningStage, bool]] = []
    pack = FMambaModule.pack

    def recorded(self: FMambaModule, batch: dict[str, Any]) -> Any:
        assert self.trainer.state.stage is not None
        seen.append((self.trainer.state.stage, "augment" in batch))
        return pack(self, batch)

    monkeypatch.setattr(FMambaModule, "pack", recorded)
    extra = f"{extra} --learning_rate 1e-12 --num_sanity_val_steps 1 --max_epochs 2"
    plain = cli.run(extra)
    assert {augmented for _, augmented in seen} == {False}
    seen.clear()
    augmented = cli.run(f"{extra} {AUGMENT}")
    stages = {stage for stage, _ in seen}
    assert set(seen) == {(stage, stage == RunningStage.TRAINING) for stage in stages}
    assert RunningStage.TRAINING in stages and len(stages) > 1
    assert plain.metrics["train/loss"] != augmented.metrics["train/loss"]
    held_out = {k: v for k, v in plain.metrics.items() if k.startswith(("val/", "test/"))}
    assert held_out
    for key, value in held_out.items():
        assert augmented.metrics[key] == pytest.approx(value, rel=1e-5), key


def test_only_one_kind_of_augmentation(cli: CommandLine) -> None:
    """Smoothing and noise leave the kept tokens alone; the plan says what is done."""
    assert kept(cli, f"{AUGMENT} --augment_only_intensity") == kept(cli, "")
    plan = describe_plan(cli.planned(f"{AUGMENT} --augment_only_affine --augment_strength 2"))
    assert "affine; strength 2" in plan
    assert "affine, smoothing, noise; strength 1" in describe_plan(cli.planned(AUGMENT))


def test_scan_backends_agree(cli: CommandLine) -> None:
    assert loss(cli, "--ssd_backend reference") == pytest.approx(loss(cli, ""), rel=1e-5)


def curve(done: Finished) -> list[float]:
    """Training loss of every step of a run with ``--log_every_n_steps 1``."""
    with open(done.folder / "logs" / "metrics.csv", newline="") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


@pytest.mark.parametrize("extra", [NEXT, MIM], ids=["next token", "masked tokens"])
def test_loss_curves_do_not_depend_on_the_backend(cli: CommandLine, extra: str) -> None:
    """The golden run: 24 steps of pre-training, on the recurrence and on the fast scan.

    Windows of more tokens than a chunk of the scan has, of other lengths in every batch.
    """
    extra += (
        " --img_size 12 12 12 12 --patch_size 4 4 4 2 --depth 2 --batch_size 2 "
        "--learning_rate 3e-2 --max_epochs 4 --log_every_n_steps 1"
    )
    lengths = kept(cli, extra)
    assert min(lengths) > CHUNK
    slow, fast = (cli.run(f"{extra} --ssd_backend {name}") for name in ("reference", "cpu"))
    assert len(curve(slow)) == 24
    assert slow.metrics["val/loss"] < 0.9 * curve(slow)[0], "it learns, so errors would grow"
    np.testing.assert_allclose(curve(fast), curve(slow), rtol=1e-5)
    for key in ("val/loss", "val/persistence_loss", "val/mean_token_loss"):
        assert fast.metrics[key] == pytest.approx(slow.metrics[key], rel=1e-5)


@shows("activation_checkpointing")
def test_activation_checkpointing(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run twice a step, and the run is the same: also where they draw for dropout."""
    calls: list[bool] = []
    forward = Mamba2.forward

    def counted(self: Mamba2, *args: Any) -> torch.Tensor:
        calls.append(True)
        return forward(self, *args)

    monkeypatch.setattr(Mamba2, "forward", counted)
    extra = f"{NEXT} --dropout 0.2 --depth 2 --max_steps 3 --limit_val_batches 0"
    plain = cli.run(extra)
    once = len(calls)
    again = cli.run(f"{extra} --activation_checkpointing")
    assert once == 3 * 2 and len(calls) - once == 2 * once
    assert again.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-6)


@shows("allocator")
def test_allocator(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the flag does to the memory is in tests/unit/training/test_allocator.py."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)

    def mallopt(key: int, value: int) -> int:
        asked.append((key, value))
        return 1

    library = SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr(allocator, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    line = "memory allocator: {}"
    for extra, settings, said in (
        ("", [(-4, 0), (-1, -1)], "retain (auto on cpu with glibc; "),
        ("--allocator retain", [(-4, 0), (-1, -1)], "retain (requested; "),
        ("--allocator compact", [(-3, 1 << 20)], "compact (requested; "),
        ("--allocator default", [], "default (requested)"),
    ):
        asked.clear()
        caplog.clear()
        cli.run(f"--max_steps 1 {extra}")
        assert asked == settings
        assert [m for m in caplog.messages if m.startswith(line.format(said))], caplog.messages
    asked.clear()
    plan = describe_plan(cli.planned("--allocator default"))
    assert "default allocator: requested" in plan and asked == []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert main(cli.argv("--allocator retain")) == 2


def test_accumulated_batches_are_one_large_batch(cli: CommandLine) -> None:
    """36 windows: 3 x 4 x 3 steps are 3 x 12 steps, since every batch has 4 windows."""
    accumulated = cli.run("--gradient_accumulation_steps 3 --label_smoothing 0")
    large = cli.run("--batch_size 12 --label_smoothing 0")
    assert accumulated.metrics["train/steps"] == large.metrics["train/steps"] == 3
    a, b = accumulated.checkpoint()["state_dict"], large.checkpoint()["state_dict"]
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


@shows("model")
def test_model(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(cli.argv("--model swift --dry_run")) == 2
    assert "--model: unknown name 'swift'. Known: fmamba." in capsys.readouterr().err
    assert "fmamba D=16" in describe_plan(cli.planned("--model fmamba"))


@shows("in_chans")
def test_in_chans(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(cli.argv("--in_chans 2")) == 2
    assert "--in_chans: got 2, but a store holds one channel" in capsys.readouterr().err


@shows("downstream_task_type")
def test_downstream_task_type(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(cli.argv("--downstream_task_type regression")) == 2
    assert "--downstream_task_type: got 'regression'" in capsys.readouterr().err
    assert objective(cli, "--downstream_task_type classification").startswith("sex (classif")


@shows("sequence_length")
def test_sequence_length(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert windows(cli, "--sequence_length 4") == (36, 12, 12)
    assert main(cli.argv("--sequence_length 6")) == 2
    assert "--sequence_length: got 6, but --img_size ends with 4" in capsys.readouterr().err
    run(["--dataset_name", "Dummy", "--sequence_length", "10", "--dry_run"])
    assert "20,480 of 432 values" in capsys.readouterr().out, "without --img_size it decides"


@shows("calc_loss_without_background")
def test_calc_loss_without_background(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept(cli, "--calc_loss_without_background") == kept(cli, "") == (10, 10, 10, 10)
    assert main(cli.argv("--calc_loss_without_background --keep_background")) == 2
    assert "--keep_background contradicts --calc_loss_without_background" in capsys.readouterr().err


@shows("dummy_subjects", "dummy_effect_size")
def test_synthetic_store(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --image_path the flags reach the generator, and the dry run announces them."""
    asked: dict[str, Any] = {}

    def ensure_dummy_store(path: Path, **wanted: Any) -> None:
        asked.update(wanted)
        shutil.copytree(cli.store, path)

    module = "neuromamba.data.synthetic.runs"
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(ensure_dummy_store=ensure_dummy_store))
    argv = cli.argv("--dummy_subjects 6 --dummy_effect_size 0.5")
    del argv[argv.index("--image_path") : argv.index("--image_path") + 2]
    run([*argv, "--dry_run"])
    assert asked == {} and not Path("output").exists()
    run(argv)
    assert asked == {"subjects": 6, "effect_size": 0.5, "grid": (12, 12, 12), "frames": 40}
    assert [p.name for p in Path("output/dummy").iterdir()] == ["12x12x12_40f_6s_effect0.5"]


# Where a run writes, and what ------------------------------------------------------------------


@shows("output_dir")
def test_files_of_a_run(cli: CommandLine) -> None:
    done = cli.run("--output_dir somewhere/else")
    assert done.files == {
        "config.yaml",
        "metrics.json",
        "evaluation.json",
        "predictions.csv",
        "validation_predictions.csv",
        "subjects.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/metrics.csv",
        "splits/Dummy/split_fixed_1.json",
        "splits/Dummy/split_fixed_1.txt",
    }
    assert not Path("output").exists()


@shows("project_name", "process_code")
def test_named_run(cli: CommandLine) -> None:
    run(cli.argv("--project_name alpha --process_code beta"))
    assert {p.name for p in Path("output/alpha/beta").iterdir()} >= {"config.yaml", "metrics.json"}
    run(cli.argv(f"--project_name alpha {NEXT}"))
    (other,) = {p.name for p in Path("output/alpha").iterdir()} - {"beta"}
    assert other.startswith("autoregressive_"), "objective and time"


@shows("dry_run")
def test_dry_run(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(cli.store.rglob("*"))
    argv = "--dry_run --gradient_accumulation_steps 3 --output_dir out --max_epochs 2"
    assert run(cli.argv(argv)) == {}
    plan = capsys.readouterr().out
    parameters = sum(p.numel() for p in cli.module().parameters())
    assert f"{parameters:,} parameters" in plan
    assert "16 of 432 values a window" in plan
    assert "12 = micro batch 4 x devices 1 x nodes 1 x accumulation 3" in plan
    assert "train 36, val 12, test 12" in plan
    assert "6 optimiser steps" in plan
    assert "nothing is missing on this machine" in plan
    assert list(cli.folder.iterdir()) == [] and sorted(cli.store.rglob("*")) == before


def test_dry_run_lists_what_is_missing(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = cli.argv("--accelerator gpu --image_path nowhere --load_model_path none.pt --dry_run")
    assert main(argv) == 0
    missing = capsys.readouterr().out.split("missing on this machine:")[1]
    for what in ("CUDA GPU was asked for", "no folder 'nowhere'", "no file 'none.pt'"):
        assert what in missing


@pytest.mark.parametrize(
    ("extra", "keys"),
    [
        ("", {"loss", "auroc", "accuracy", "balanced_accuracy"}),
        (AGE, {"loss", "mse", "mae", "pearson_r", "r2"}),
        (NEXT, {"loss", "persistence_loss", "mean_token_loss", "skill", *FEATURES}),
        (MIM, {"loss", "persistence_loss", "mean_token_loss", "skill", *FEATURES}),
    ],
)
def test_metrics_json(cli: CommandLine, extra: str, keys: set[str]) -> None:
    done = cli.run(extra)
    written = done.written
    general = {"train/loss", "train/steps", "train/seconds", "model/parameters"}
    general |= {f"data/{k}_{p}" for k in ("subjects", "windows") for p in ("train", "val", "test")}
    evaluated = {f"val/{key}" for key in keys}
    if "pretraining" not in extra:
        evaluated |= {f"test/{key}" for key in keys}
        bounds = {f"{key}_{end}" for key in keys - {"loss"} for end in ("low", "high")}
        evaluated |= {f"test/{key}" for key in bounds}
        evaluated |= {"test/ece", "test/brier"} if "auroc" in keys else set()
    assert set(written) == general | evaluated
    assert all(isinstance(value, float) for value in written.values()), "flat, and all defined"
    assert written == done.metrics
    assert ("predictions.csv" in done.files) == ("pretraining" not in extra)
    if "pretraining" in extra:
        expected = 1 - written["val/loss"] / written["val/persistence_loss"]
        assert written["val/skill"] == pytest.approx(expected, rel=1e-5)


def predictions(done: Finished, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(done.folder / name, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("size", [1, 5, 100])
def test_no_test_subject_is_dropped(cli: CommandLine, size: int) -> None:
    done = cli.run(f"--eval_batch_size {size}")
    rows = predictions(done)
    assert list(rows[0]) == ["subject", "window", "target", "prob_0", "prob_1"]
    expected = sorted(cli.data().subjects["test"][0])
    found = [(row["subject"], row["window"]) for row in rows]
    assert found == [(name, str(w)) for name in expected for w in range(3)]
    labels = targets(cli, "")
    mean = {name: np.zeros(2) for name in expected}
    for row in rows:
        probabilities = np.array([float(row["prob_0"]), float(row["prob_1"])])
        assert probabilities.sum() == pytest.approx(1, abs=1e-6)
        assert int(row["target"]) == labels[row["subject"]]
        mean[row["subject"]] += probabilities / 3
    right = np.mean([mean[name].argmax() == labels[name] for name in expected])
    assert done.metrics["test/accuracy"] == pytest.approx(right)


def test_regression_predicts_in_years(cli: CommandLine) -> None:
    done = cli.run(f"{AGE} --max_epochs 2")
    rows = predictions(done)
    assert list(rows[0]) == ["subject", "window", "target", "prediction"]
    assert {float(row["target"]) for row in rows} <= {20.0 + 2 * i for i in range(20)}
    assert all(10 < float(row["prediction"]) < 70 for row in rows)


@shows("embedding_save_dir")
def test_embeddings(cli: CommandLine) -> None:
    cli.run("--save_embedding --embedding_save_dir features")
    saved = np.load("features/embeddings.npz")
    assert saved["embedding"].shape == (12, 16)
    assert np.isfinite(saved["embedding"]).all() and saved["embedding"].std() > 0
    assert sorted(set(saved["subject"])) == sorted(cli.data().subjects["test"][0])
    assert main(cli.argv("--embedding_save_dir features")) == 2


# TensorBoard itself, and what it imports, warn of changes to come in NumPy and setuptools.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@shows("loggername")
@pytest.mark.parametrize("name", ["csv", "tensorboard", "wandb"])
def test_loggers(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "wandb":
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(variable, str(cli.folder / "wandb_home"))
    done = cli.run(f"--loggername {name} --max_epochs 2 --log_every_n_steps 3")
    with open(done.folder / "logs" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"step", "train/loss", "train/learning_rate", "val/auroc"} <= set(rows[0])
    assert sum(row["val/auroc"] != "" for row in rows) >= 2, "one value an epoch"
    assert sum(row["train/loss"] != "" for row in rows) == 6, "every third of 18 steps"
    pattern = {"csv": "events*", "tensorboard": "events*", "wandb": "*.wandb"}[name]
    found = {path.parts[len(done.folder.parts)] for path in done.folder.rglob(pattern)}
    assert found == (set() if name == "csv" else {name})


# --config --------------------------------------------------------------------------------------


@shows("config")
def test_flags_override_the_config_file(cli: CommandLine) -> None:
    Path("some.yaml").write_text(
        "batch_size: 3\nseed: 9\nuse_scheduler: false\ndataset_name: [Dummy]\n"
    )
    config = cli.planned("--config some.yaml").config
    assert config.data.batch_size == 4, "a flag of the command line"
    assert config.flags["seed"] == 9 and not config.optim.use_scheduler
    assert cli.planned("--config some.yaml --use_scheduler").config.optim.use_scheduler


VARIED = {
    "downstream": "--clf_head_version mamba --dropout 0.1 --label_smoothing 0.2",
    "regression": f"{AGE} --label_scaling_method minmax",
    "next token": f"{NEXT} --no-use_scheduler",
    "masked tokens": f"{MIM} --mask_ratio 0.4 --masking_type tube",
    "their synonyms": "--accumulate_grad_batches 2 --gradient_clip_val 0.5",
    "our synonyms": "--gradient_accumulation_steps 2 --grad_clip 0.5",
    "trainer": "--limit_train_batches 0.5 --deterministic --precision 32 --max_steps 3",
    "one batch": "--limit_train_batches 1 --limit_val_batches 1.0",
}


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "train/seconds"}


@pytest.mark.parametrize("extra", VARIED.values(), ids=VARIED)
def test_config_of_a_run_repeats_it(cli: CommandLine, extra: str) -> None:
    first = cli.run(f"--seed 5 {extra}")
    run(["--config", str(first.folder / "config.yaml"), "--output_dir", "again"])
    second = Finished({}, Path("again"))
    assert comparable(second.written) == comparable(first.written)
    assert (second.folder / "config.yaml").read_text() == (first.folder / "config.yaml").read_text()
    if "predictions.csv" in first.files:
        assert predictions(second) == predictions(first)


def test_config_is_resolved(cli: CommandLine) -> None:
    written = yaml.safe_load((cli.run().folder / "config.yaml").read_text())
    assert written["d_state"] == 4 and written["headdim"] == 16
    assert written["eval_batch_size"] == 4
    assert written["img_size"] == [12, 12, 12, 4]
    assert "mask_ratio" not in written, "not used downstream"


# Reproducibility, checkpoints, resuming --------------------------------------------------------


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


# Lightning's own flags --------------------------------------------------------------------------

# flag -> words on the command line, and what reaches the Trainer.
TRAINER: dict[str, tuple[str, Any]] = {
    "accelerator": ("cpu", "cpu"),
    "strategy": ("ddp", "ddp"),
    "devices": ("2", 2),
    "num_nodes": ("2", 2),
    "precision": ("bf16", "bf16-mixed"),
    "fast_dev_run": ("3", 3),
    "max_epochs": ("7", 7),
    "min_epochs": ("2", 2),
    "max_steps": ("11", 11),
    "min_steps": ("5", 5),
    "max_time": ("00:01:00:00", None),  # we keep the time, see test_survival.py
    "limit_train_batches": ("0.5", 0.5),
    "limit_val_batches": ("2", 2),
    "limit_test_batches": ("1.0", 1.0),
    "limit_predict_batches": ("3", 3),
    "overfit_batches": ("1", 1),
    "val_check_interval": ("0.25", 0.25),
    "check_val_every_n_epoch": ("2", 2),
    "num_sanity_val_steps": ("2", 2),
    "log_every_n_steps": ("3", 3),
    "enable_checkpointing": ("", True),
    "enable_progress_bar": ("", True),
    "enable_model_summary": ("", True),
    "accumulate_grad_batches": ("4", 4),
    "gradient_clip_val": ("0.5", 0.5),
    "gradient_clip_algorithm": ("value", "value"),
    "deterministic": ("warn", "warn"),
    "benchmark": ("", True),
    "inference_mode": ("", True),
    "detect_anomaly": ("", True),
    "barebones": ("", True),
    "sync_batchnorm": ("", True),
    "reload_dataloaders_every_n_epochs": ("2", 2),
    "enable_autolog_hparams": ("", True),
}


@pytest.fixture
def handed_on(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Keyword arguments of the Trainer that flags lead to."""
    monkeypatch.setattr(fit_module, "Trainer", lambda **arguments: arguments)
    monkeypatch.setattr(fit_module, "take_over_signals", lambda trainer: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    def build(extra: str) -> Any:
        planned = cli.planned(extra)
        return trainer_module.build_trainer(
            planned.config, planned.hardware, cli.folder, "name", True
        )

    return build


@pytest.mark.parametrize("flag", TRAINER)
def test_trainer_flags_reach_the_trainer(handed_on: Callable[[str], Any], flag: str) -> None:
    text, expected = TRAINER[flag]
    found = handed_on(f"--{flag} {text}").get(flag)
    assert found == expected and type(found) is type(expected)
    if expected is True:
        assert handed_on(f"--no-{flag}" if text == "" else "")[flag] is False


@pytest.mark.parametrize(("theirs", "ours"), SYNONYMS.items())
def test_synonyms(
    cli: CommandLine,
    handed_on: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
    theirs: str,
    ours: str,
) -> None:
    assert handed_on(f"--{ours} 3")[theirs] == handed_on(f"--{theirs} 3")[theirs] == 3
    assert handed_on("").get(theirs) in (None, 1)
    assert main(cli.argv(f"--{ours} 3 --{theirs} 3")) == 2
    assert f"--{ours} and --{theirs} mean the same" in capsys.readouterr().err


def test_accumulation_counts_in_the_plan(cli: CommandLine) -> None:
    for flag in ("accumulate_grad_batches", "gradient_accumulation_steps"):
        planned = cli.planned(f"--{flag} 3")
        assert planned.effective_batch == 12 and "3 optimiser steps" in describe_plan(planned)


@pytest.mark.parametrize(
    "extra",
    [
        "--fast_dev_run",
        "--fast_dev_run 2",
        "--barebones",
        pytest.param(
            "--overfit_batches 1",
            # Lightning says so; it is what the flag is for.
            marks=pytest.mark.filterwarnings("ignore:.*turning off the train dataloader shuffl"),
        ),
        "--limit_train_batches 2 --limit_val_batches 0.5 --limit_test_batches 1",
        "--val_check_interval 0.5",
        "--check_val_every_n_epoch 2 --max_epochs 3",
        "--num_sanity_val_steps 2",
        "--max_epochs -1 --max_steps 3",
        "--max_time 00:00:10:00",
        "--precision bf16",
        "--precision 64",
        "--deterministic --detect_anomaly --no-inference_mode --enable_model_summary",
        "--gradient_clip_val 0.5 --gradient_clip_algorithm value",
        "--reload_dataloaders_every_n_epochs 1 --max_epochs 2",
    ],
)
def test_trainer_flags_in_a_real_run(cli: CommandLine, extra: str) -> None:
    done = cli.run(extra)
    assert {row["subject"] for row in predictions(done)} <= set(cli.data().subjects["test"][0])
    if "barebones" not in extra:  # which logs nothing
        assert np.isfinite(done.written["train/loss"])
        assert np.isfinite(done.written["test/loss"])


@pytest.mark.parametrize(
    ("extra", "steps"),
    [("--limit_train_batches 0.5", 4), ("--max_steps 7", 7), ("--fast_dev_run 2", 2)],
)
def test_steps_of_the_schedule_are_those_taken(cli: CommandLine, extra: str, steps: int) -> None:
    assert cli.run(extra).metrics["train/steps"] == steps
    if "fast" not in extra:
        assert f"{steps} optimiser steps" in describe_plan(cli.planned(extra))


# The environment ---------------------------------------------------------------------------------

# DeepSpeed as if it were not installed, and a folder of its name on the path.
HIDE_DEEPSPEED = """
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError

found_by_name = Distribution.from_name

def from_name(name):
    if name == "deepspeed":
        raise PackageNotFoundError(name)
    return found_by_name(name)

class EmptyFolder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "deepspeed":
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = ["deepspeed"]
            return spec

Distribution.from_name = staticmethod(from_name)
sys.meta_path.insert(0, EmptyFolder)
"""


@shows("deepspeed_autocast")
def test_deepspeed_autocast(cli: CommandLine) -> None:
    """The parameters stay fp32; without the flag DeepSpeed makes bf16 of them."""
    pytest.importorskip("deepspeed")
    program = str(ROOT / "project" / "main.py")
    found = []
    for extra in ("", "--deepspeed_autocast"):
        folder = cli.folder / f"run{extra}"
        line = (
            f"{NEXT} --strategy deepspeed_stage_1 --precision bf16 --limit_train_batches 1 "
            f"--val_split 0 --output_dir {folder} {extra}"
        )
        done = subprocess.run(
            [sys.executable, program, *cli.argv(line)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
        )
        assert done.returncode == 0, done.stderr
        state = folder / "checkpoints/last.ckpt/checkpoint/mp_rank_00_model_states.pt"
        weights = torch.load(state, weights_only=True)["module"]
        found.append(weights["model.embedder.projection"].dtype)
    assert found == [torch.bfloat16, torch.float32]


def test_an_empty_deepspeed_folder_breaks_nothing(cli: CommandLine) -> None:
    """The reference's TORCH_EXTENSIONS_DIR=$PWD/deepspeed with PYTHONPATH=$PWD."""
    (cli.folder / "deepspeed").mkdir()
    (cli.folder / "sitecustomize.py").write_text(HIDE_DEEPSPEED)
    root = ROOT

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(cli.folder), str(root)])
        extensions = str(cli.folder / "deepspeed")
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "TORCH_EXTENSIONS_DIR": extensions},
        )

    assert python("-c", "import deepspeed").returncode == 0, "the trap is set"
    done = python("-c", "import project, deepspeed")
    assert "ModuleNotFoundError: import of deepspeed halted" in done.stderr
    program = str(root / "project" / "main.py")
    done = python(program, *cli.argv("--strategy deepspeed --dry_run"))
    assert done.returncode == 0, done.stderr
    assert "DeepSpeed is not installed" in done.stdout


@shows("watch_task")
def test_features_are_watched(cli: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    split = "--train_split 0.3 --val_split 0.4"
    done = cli.run(f"{NEXT} {split} --watch_task sex")
    assert 0 <= done.metrics["val/knn_sex"] <= 1
    plain = cli.run(f"{NEXT} {split}")
    assert "val/knn_sex" not in plain.metrics
    shared = {k: v for k, v in done.metrics.items() if k in plain.metrics and "seconds" not in k}
    assert shared == {k: v for k, v in plain.metrics.items() if "seconds" not in k}
    assert main(cli.argv(f"{NEXT} --watch_task age")) == 2
    assert main(cli.argv("--watch_task sex")) == 2
    # A rate that makes nothing better: said in words, once.
    caplog.clear()
    cli.run(f"{NEXT} {split} --learning_rate 1e-12 --max_epochs 7 --no-use_scheduler")
    said = [
        record.getMessage() for record in caplog.records if "has stopped" in record.getMessage()
    ]
    assert len(said) <= 1


def test_a_backbone_that_has_seen_the_test_runs_under_other_names(
    cli: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    """Their contents tell."""
    path = cli.run(NEXT).folder / "checkpoints" / "last.ckpt"
    other = cli.folder / "renamed"
    (other / "hdf5").mkdir(parents=True)
    for number in range(SUBJECTS):
        write_tiny_run(other / "hdf5" / f"sub-x{number}.h5", f"sub-x{number}", number)
    (other / "metadata").mkdir()
    rows = [f"sub-x{i},{'FM'[i % 2]}" for i in range(SUBJECTS)]
    (other / "metadata" / "participants.csv").write_text("\n".join(["subject,sex", *rows]) + "\n")
    caplog.clear()
    cli.run(f"--image_path {other} --load_model_path {path}")
    said = [
        r.getMessage() for r in caplog.records if "by the contents of its run" in r.getMessage()
    ]
    assert len(said) == 1 and "held out here were trained on" in said[0]


@shows("adjust_thresh")
def test_a_threshold_is_chosen_on_the_validation_subjects(cli: CommandLine) -> None:
    """It is written down with what it does to the test subjects; nothing else changes."""
    plain, done = cli.run(), cli.run("--adjust_thresh")
    assert "test/threshold" not in plain.written
    shared = {k: v for k, v in done.written.items() if k in plain.written and "seconds" not in k}
    assert shared == {k: v for k, v in plain.written.items() if "seconds" not in k}
    rows = predictions(done, "subjects.csv")
    threshold = done.written["test/threshold"]
    for row in rows:
        assert (float(row["prob_1"]) >= threshold) == (row["decision"] == "1")

    def balanced(part: str, at: float) -> float:
        own = [r for r in rows if r["part"] == part]
        truth = [int(r["target"]) for r in own]
        told = [float(r["prob_1"]) >= at for r in own]
        return sklearn.metrics.balanced_accuracy_score(truth, told)

    scores = [float(r["prob_1"]) for r in rows]
    best = max(balanced("val", at) for at in [*scores, 0.0, 1.1])
    assert balanced("val", threshold) == pytest.approx(best)
    found = done.written["test/balanced_accuracy_adjusted"]
    assert found == pytest.approx(balanced("test", threshold), abs=1e-9)
    again = cli.run(
        f"--test_only --adjust_thresh --test_ckpt_path {done.folder}/checkpoints/best.ckpt",
    )
    assert again.written["test/threshold"] == pytest.approx(threshold)
    assert main(cli.argv(f"{AGE} --adjust_thresh")) == 2
    assert main(cli.argv("--adjust_thresh --val_split 0 --train_split 0.6")) == 2


ODD_CONFOUNDS = {
    "mixed": "'mixed' is a number for 9 subjects, but 'unknown' for one of the other 1",
    "same": "'same' has the same value for all subjects",
    "names": "regressors for 10 test subjects would explain any score; 'names' has",
    "sex": "'sex' is the target itself",
}


@pytest.mark.parametrize("column", ODD_CONFOUNDS)
def test_confounds_that_say_nothing_are_refused_before_the_training(
    cli: CommandLine, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"sub-{i + 1:02d},{'unknown' if i == 2 else i},7,n{i},{2e300 * i}" for i in range(20)]
    text = "\n".join(["subject,mixed,same,names,huge", *rows]) + "\n"
    (cli.store / "metadata" / "odd.csv").write_text(text)
    split = "--train_split 0.3 --val_split 0.2 --output_dir odd"
    assert main(cli.argv(f"--confounds {column} {split}")) == 2
    error = capsys.readouterr().err
    assert ODD_CONFOUNDS[column] in error and error.count("\n") == 1
    assert not Path("odd").exists()


@shows("confounds")
def test_confounds_are_reported(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(cli)
    done = cli.run("--confounds skew --train_split 0.3 --val_split 0.2")
    record = json.loads((done.folder / "evaluation.json").read_text())["confounds"]
    assert record["subjects"] == 10 and set(record["of_score"]) == {"skew"}
    assert record["of_target"]["skew"]["share"] > 0.2  # made from the sex
    assert record["before"]["value"] == pytest.approx(done.written["test/auroc"], abs=1e-9)
    split = "--dataset_split_num 2"
    assert main(cli.argv(f"--confounds height {split}")) == 2
    assert "--confounds" in capsys.readouterr().err.splitlines()[-1]
    assert (
        main(cli.argv(f"--confounds skew {split}")) == 2
    )  # too few test subjects, said before training
    assert "4 test subjects have values of skew" in capsys.readouterr().err.splitlines()[-1]
