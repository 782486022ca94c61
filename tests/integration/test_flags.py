"""No flag is decoration: changing it changes a batch, a model, a loss, a file or the plan.

``CASES`` has an entry for every flag of ours, ``TRAINER`` one for every flag of Lightning's
Trainer; a flag without an entry fails ``test_every_flag_has_a_test``.
"""

from __future__ import annotations

import csv
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.trainer.states import RunningStage

from neuromamba.commands.train import main, run
from neuromamba.fmamba.dry_run import describe_plan
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.trainer_flags import TRAINER_FLAGS
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.ssd import select_backend
from neuromamba.layers.ssd.types import CHUNK
from neuromamba.training import allocator
from tests.helpers.flag_tests import (
    AGE,
    AUGMENT,
    MIM,
    NEXT,
    OWN,
    OWN_TESTS,
    SAME_PLACE,
    SGD,
    SWIFT,
    TWO_STORES,
    VOXELWISE,
    backends,
    batch,
    cached,
    drawn,
    encoding,
    files,
    kept,
    loaders,
    loss,
    names,
    objective,
    optimiser,
    peak_rate,
    rates,
    shapes,
    shows,
    steps,
    subjects,
    targets,
    targets_and_units,
    tokens,
    trainable,
    unit_of_split,
    windows,
    write_tables,
)
from tests.helpers.tiny import CommandLine, Finished

# Not called here: their tests enter themselves with ``shows`` when they are imported.
from tests.integration import (  # noqa: F401
    test_broken_deepspeed,
    test_evaluation_flags,
    test_repeated_runs,
    test_run_files,
)
from tests.integration.test_trainer_flags import TRAINER

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
    "scaling_statistics": Case("--scaling_statistics window", tokens, VOXELWISE),
    "channels": Case("--channels anatomy dynamics", batch, VOXELWISE),
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
    "token_order": Case("--token_order space_first", loss),
    "keep_background": Case("--keep_background", kept, expected=(16, 16, 16, 16)),
    "union_mask": Case("--union_mask", kept, expected=(12, 12, 12, 12)),
    "swin_depths": Case("--swin_depths 2 1", shapes, SWIFT),
    "swin_heads": Case("--swin_heads 1 4", loss, SWIFT),
    "swin_window": Case("--swin_window 1 1 1 1", loss, SWIFT),
    "ssd_backend": Case("--ssd_backend reference", backends, expected={"reference"}),
    # objective
    "pretraining": Case(NEXT, objective, expected="pre-training, next token"),
    "use_autoregressive": Case(NEXT, objective, expected="pre-training, next token"),
    "use_mim": Case(MIM, objective, expected="pre-training, masked tokens (random, 0.75)"),
    "mask_ratio": Case("--mask_ratio 0.3", loss, MIM),
    "masking_type": Case("--masking_type temporal", loss, MIM),
    "predict": Case("--predict same_place", loss, NEXT),
    "predict_ahead": Case("--predict_ahead 2", loss, f"{SAME_PLACE} --img_size 12 12 12 6"),
    "loss_on": Case("--loss_on difference", loss, SAME_PLACE),
    "downstream_task": Case("--downstream_task diagnosis", targets),
    "class_weights": Case("--class_weights balanced", loss, OWN),
    "label_csv": Case(OWN, targets),
    "subject_column": Case("--subject_column twin", targets, OWN),
    "target_column": Case("--target_column hand", targets, OWN),
    "target_classes": Case("--target_classes b a", targets, OWN),
    "missing_codes": Case("--missing_codes z", targets, OWN.replace("group", "third")),
    "events": Case("--events events.tsv", targets_and_units),
    "event_delay": Case("--event_delay 4", windows, "--events events.tsv", expected=(24, 8, 8)),
    "clf_head_version": Case("--clf_head_version mamba", shapes),
    "head_dropout": Case("--head_dropout 0.5", loss),
    "pool": Case("--pool regions", shapes),
    "head_norm": Case("--head_norm batch", loss),
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


# (observation, base) -> what earlier cases have seen without their change.
_SEEN: dict[tuple[Callable[..., Any], str], list[Any]] = {}


def without_the_change(cli: CommandLine, case: Case, base: str) -> Any:
    """Observed twice by the first case, once by the second in folders of its own; all must agree.

    What neither repetition nor folder changes, the cases after them need not observe again.
    """
    seen = _SEEN.setdefault((case.observe, case.base), [])
    for _ in range({0: 2, 1: 1, 2: 1}.get(len(seen), 0)):
        seen.append(case.observe(cli, base))
    assert all(one == seen[0] for one in seen), "not reproducible: a change would show anyway"
    return seen[0]


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
    before = without_the_change(cli, case, base)
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
    blocks = 3 * 2
    # A backend that computes whole blocks takes the place of their layers, if they run once.
    whole = select_backend("auto", torch.device("cpu")).block is not None
    assert once == (0 if whole else blocks)
    assert len(calls) - once == 2 * blocks
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
    assert main(cli.argv("--model vit --dry_run")) == 2
    assert "--model: unknown name 'vit'. Known: fmamba, swift." in capsys.readouterr().err
    assert "fmamba D=16" in describe_plan(cli.planned("--model fmamba"))
    assert "SwiFT, 1 + 1 4D Swin blocks" in describe_plan(cli.planned(SWIFT))


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
