"""The flags of every entry point, frozen: names and defaults are a contract with the user.

A new, renamed or vanished flag, or another default, must be a conscious change of this file.
"""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from typing import Any

import pytest
from pytorch_lightning import Trainer

from neuromamba.commands import demo, doctor
from neuromamba.commands import plan as plan_command
from neuromamba.commands import preprocess as preprocessing
from neuromamba.commands import synthetic as synthetic_command
from neuromamba.commands.export import export_parser
from neuromamba.commands.flops import flops_parser
from neuromamba.commands.profile import profile_parser
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.probe_flags import probe_parser
from neuromamba.fmamba.trainer_flags import NOT_FLAGS, TRAINER_FLAGS

MAIN: dict[str, Any] = {
    # run
    "config": None,
    "seed": 1234,
    "dry_run": False,
    "output_dir": None,
    "project_name": "default",
    "process_code": None,
    "loggername": "csv",
    "load_model_path": None,
    "resume_ckpt_path": None,
    "test_only": False,
    "test_ckpt_path": None,
    "deepspeed_autocast": False,
    "save_embedding": False,
    "embedding_save_dir": None,
    "use_early_stopping": False,
    "early_stopping_patience": 5,
    "save_every_checkpoints": False,
    "every_n_train_steps": None,
    "scalability_check": False,
    "skip_bad_batches": 0,
    "allocator": "auto",
    # data
    "dataset_name": ["S1200"],
    "image_path": None,
    "img_size": [96, 96, 96, 20],
    "sequence_length": None,
    "stride_between_seq": 1.0,
    "stride_within_seq": 1,
    "input_scaling_method": "znorm_minback",
    "scaling_statistics": "run",
    "channels": ["dynamics"],
    "dataset_split_num": 1,
    "train_split": 0.8,
    "val_split": 0.1,
    "batch_size": 4,
    "eval_batch_size": None,
    "num_workers": 0,
    "pin_memory": False,
    "persistent_workers": True,
    "prefetch_factor": 2,
    "window_cache": 0.0,
    "limit_training_samples": None,
    "limit_validation_samples": None,
    "limit_test_samples": None,
    "num_train_fMRI_segments": None,
    "bad_subj_path": None,
    "shuffle_time_sequence": False,
    "group_by": "subject",
    "family_column": None,
    "stratify_by": [],
    "match_on": [],
    "match_caliper": 0.2,
    "dataset_weights": [],
    "balanced_sampling": False,
    "include_valid_to_train": False,
    "augment_during_training": False,
    "augment_only_affine": False,
    "augment_only_intensity": False,
    "augment_strength": 1.0,
    "dummy_subjects": 40,
    "dummy_effect_size": 2.0,
    # model
    "model": "fmamba",
    "embed_dim": 192,
    "depth": 12,
    "d_state": 0,
    "headdim": 0,
    "dropout": 0.0,
    "patch_size": [6, 6, 6, 2],
    "in_chans": 1,
    "swin_depths": [2, 2, 6, 2],
    "swin_heads": [3, 6, 12, 24],
    "swin_window": [4, 4, 4, 4],
    "mamba_pe_method": "nerf",
    "token_order": "raster",
    "keep_background": False,
    "calc_loss_without_background": False,
    "union_mask": False,
    "ssd_backend": "auto",
    "activation_checkpointing": False,
    # objective
    "pretraining": False,
    "use_autoregressive": False,
    "use_mim": False,
    "watch_task": [],
    "mask_ratio": 0.75,
    "masking_type": "random",
    "predict": "next_token",
    "predict_ahead": 1,
    "loss_on": "token",
    "downstream_task": "sex",
    "downstream_task_type": None,
    "clf_head_version": "linear",
    "head_dropout": 0.0,
    "pool": "mean",
    "head_norm": "none",
    "freeze_feature_extractor": False,
    "lora_rank": 0,
    "lora_alpha": 16.0,
    "label_smoothing": 0.1,
    "label_scaling_method": "standardization",
    "shuffle_labels": None,
    "class_weights": "none",
    "label_csv": None,
    "subject_column": None,
    "target_column": None,
    "target_classes": [],
    "missing_codes": [],
    "events": None,
    "event_delay": 0.0,
    "adjust_thresh": False,
    "confounds": [],
    # optimisation
    "optimizer": "AdamW",
    "learning_rate": 1e-4,
    "lr_scaling": False,
    "weight_decay": 1e-2,
    "momentum": 0.9,
    "use_scheduler": True,
    "warmup": 0.05,
    "gamma": 1.0,
    "cycle": 1.0,
    "min_lr_ratio": 0.01,
    "layer_decay": 1.0,
    "grad_clip": None,
    "gradient_accumulation_steps": 1,
}
CHECK_FLOPS: dict[str, Any] = {
    "json": None,
    "output": None,
    "windows_per_epoch": None,
    "profiler": "torch",
}
PROFILE: dict[str, Any] = {
    "profile_batches": 20,
    "warm_up_batches": 5,
    "json": None,
    "scaling": None,
    "point_seconds": 1800.0,
}
DOCTOR: dict[str, Any] = {"image_path": [], "json": None}
PLAN: dict[str, Any] = {
    "gpus": None,
    "gpus_per_node": None,
    "gpu": None,
    "gpu_memory": None,
    "peak_tflops": None,
    "utilisation": 0.1,
    "effective_batch": 1152,
    "windows": None,
    "subjects": None,
    "frames": None,
    "script": None,
    "output": None,
    "walltime": None,
    "seeds": None,
    "json": None,
}
PREPROCESSING: dict[str, Any] = {
    "input": None,
    "output": None,
    "layout": "auto",
    "space": "",
    "desc": "",
    "img_size": (96, 96, 96),
    "mask": "auto",
    "tr": None,
    "drop_first": 0,
    "resample": None,
    "crop_offset": None,
    "dataset_name": "",
    "voxel_norm": False,
    "compression": "none",
    "num_workers": None,
    "min_frames": 2,
    "shard": None,
    "overwrite": False,
    "dry_run": False,
}
SYNTHETIC: dict[str, Any] = {
    "output": None,
    "subjects": 60,
    "frames": 40,
    "grid": (30, 36, 30),
    "voxel_size": 0.0,
    "effect_size": 3.0,
    "network_radius": 45.0,
    "seed": 0,
    "tr": 2.0,
    "tsnr": 10.0,
    "effect": "dynamics",
    "orientation": "RAS",
    "num_workers": 1,
    "overwrite": False,
}
EXPORT_CHECKPOINT: dict[str, Any] = {
    "backbone_only": False,
    "conv_name": "conv1d",
    "dtype": "fp32",
    "force": False,
    "keep_subject_keys": False,
    "license": None,
}
DEMO: dict[str, Any] = {
    "output_dir": "output/demo",
    "subjects": None,
    "effect_size": 0.9,
    "shuffle_labels": None,
    "seed": 0,
    "quick": False,
}
# Those that "neuromamba train" has too have no default: what is not given is the checkpoint's.
PROBE: dict[str, Any] = {
    "json": None,
    "output": None,
    "blocks": 3,
    "pools": ["mean", "mean_sd", "regions"],
    "labels": [2, 4, 8, 16, 32],
    "draws": 10,
    "fc_atlas": None,
}
PROBE_OF_TRAIN = [
    "dataset_name",
    "image_path",
    "stride_between_seq",
    "dataset_split_num",
    "train_split",
    "val_split",
    "group_by",
    "family_column",
    "stratify_by",
    "match_on",
    "match_caliper",
    "limit_training_samples",
    "limit_validation_samples",
    "limit_test_samples",
    "bad_subj_path",
    "eval_batch_size",
    "downstream_task",
    "shuffle_labels",
    "label_csv",
    "subject_column",
    "target_column",
    "target_classes",
    "downstream_task_type",
    "events",
    "event_delay",
    "seed",
    "accelerator",
    "ssd_backend",
]

# The reference's command line, each flag with a value it takes; from its READMEs and code.
REFERENCE = """
--seed 1234
--dataset_name S1200
--image_path store
--downstream_task sex
--downstream_task_type classification
--dataset_split_num 1
--train_split 0.8
--val_split 0.1
--batch_size 4
--eval_batch_size 4
--img_size 96 96 96 20
--sequence_length 20
--stride_between_seq 1.0
--stride_within_seq 1
--num_workers 2
--pin_memory
--persistent_workers
--input_scaling_method znorm_minback
--label_scaling_method standardization
--limit_training_samples 0.5
--limit_validation_samples 10
--limit_test_samples 10
--bad_subj_path bad.txt
--shuffle_time_sequence
--num_train_fMRI_segments 3
--include_valid_to_train
--model fmamba
--embed_dim 192
--depth 12
--patch_size 6 6 6 2
--in_chans 1
--mamba_pe_method nerf
--clf_head_version v1
--pretraining
--use_autoregressive
--calc_loss_without_background
--augment_during_training
--augment_only_affine
--augment_only_intensity
--augment_strength 0.5
--optimizer AdamW
--learning_rate 1e-4
--lr_scaling
--weight_decay 1e-2
--use_scheduler
--warmup 0.05
--gamma 1.0
--cycle 1.0
--grad_clip 1.0
--gradient_accumulation_steps 2
--freeze_feature_extractor
--load_model_path a.pt
--resume_ckpt_path a.ckpt
--test_only
--test_ckpt_path a.ckpt
--adjust_thresh
--loggername wandb
--project_name name
--process_code name
--scalability_check
--save_embedding
--embedding_save_dir folder
--use_early_stopping
--save_every_checkpoints
--every_n_train_steps 100
--accelerator gpu
--devices 12
--num_nodes 32
--strategy deepspeed_stage_1
--precision bf16
--max_epochs 40
--limit_train_batches 0.5
""".strip().splitlines()


def flags_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Flag -> default."""
    return {a.dest: a.default for a in parser._actions if a.option_strings and a.dest != "help"}


def test_flags_of_main() -> None:
    found = flags_of(build_parser())
    ours = {flag: value for flag, value in found.items() if flag not in TRAINER_FLAGS}
    assert ours == MAIN


def test_a_flag_of_the_trainer_is_passed_on_only_when_given() -> None:
    defaults = flags_of(build_parser())
    assert {defaults[flag] for flag in TRAINER_FLAGS} == {argparse.SUPPRESS}


def plain_types(hint: Any) -> set[type]:
    """The types of a hint that a flag can hold; str where there is none."""
    found, pending = set(), [hint]
    while pending:
        hint = pending.pop()
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            pending += typing.get_args(hint)
        elif typing.get_origin(hint) is typing.Literal:
            found |= {type(value) for value in typing.get_args(hint)}
        elif hint in (bool, int, float, str):
            found.add(hint)
    return found or {str}


def test_flags_of_the_trainer_are_those_of_lightning() -> None:
    """The table spares the parser the import of Lightning; a new release may need a new line."""
    hints = typing.get_type_hints(Trainer.__init__)
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self", *NOT_FLAGS}
    taken = {name: plain_types(hints[name]) for name in arguments}
    assert {name: set(kinds) for name, kinds in TRAINER_FLAGS.items()} == taken


def test_flags_of_check_flops() -> None:
    main, flops = flags_of(build_parser()), flags_of(flops_parser())
    assert {flag: value for flag, value in flops.items() if flag not in main} == CHECK_FLOPS
    assert set(main) <= set(flops)


def test_flags_of_export_checkpoint() -> None:
    assert flags_of(export_parser()) == EXPORT_CHECKPOINT


def test_flags_of_probe() -> None:
    main, probe = flags_of(build_parser()), flags_of(probe_parser())
    assert {flag: value for flag, value in probe.items() if flag not in main} == PROBE
    assert [flag for flag in probe if flag in main] == PROBE_OF_TRAIN
    assert {probe[flag] for flag in PROBE_OF_TRAIN} == {argparse.SUPPRESS}


def test_flags_of_deepspeed_profile() -> None:
    main, profile = flags_of(build_parser()), flags_of(profile_parser())
    assert {flag: value for flag, value in profile.items() if flag not in main} == PROFILE
    assert set(main) <= set(profile)


def test_flags_of_doctor() -> None:
    assert flags_of(doctor.doctor_parser()) == DOCTOR
    main, plan = flags_of(build_parser()), flags_of(plan_command.plan_parser())
    assert {flag: value for flag, value in plan.items() if flag not in main} == PLAN
    assert set(main) <= set(plan)


def test_flags_of_preprocessing() -> None:
    assert flags_of(preprocessing.build_parser()) == PREPROCESSING


def test_flags_of_synthetic() -> None:
    assert flags_of(synthetic_command._parser()) == SYNTHETIC


def test_flags_of_demo() -> None:
    assert flags_of(demo.build_parser()) == DEMO


@pytest.mark.parametrize("line", REFERENCE)
def test_flag_of_the_reference_is_accepted(line: str) -> None:
    _, given = parse_arguments(build_parser(), line.split())
    assert given == {line.split()[0].removeprefix("--")}
