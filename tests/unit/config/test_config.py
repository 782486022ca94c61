"""Configurations: every refusal, derived values, and the way to plain containers and back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.data import AugmentConfig, DataConfig
from neuromamba.config.model import VARIANTS, HeadConfig, ModelConfig
from neuromamba.config.names import DATASET_NAMES, canonical_dataset_name, canonical_head_name
from neuromamba.config.serialise import from_dict, read_yaml, to_dict
from neuromamba.config.tasks import TASKS, Task, TaskType
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.fmamba.build import load_model_config

NAN, INF = float("nan"), float("inf")
CONFIGURATIONS = (
    AugmentConfig,
    DataConfig,
    DownstreamConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    Task,
    TaskType,
)


def data(**values: Any) -> DataConfig:
    return DataConfig(**{"image_path": ("store",)} | values)


# ------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("typed", "options", "hint"),
    [
        ("znorm_minbck", ("znorm_minback", "minmax_zeroback"), "znorm_minback"),
        ("hcp", ("S1200", "HCP"), "HCP"),
        ("DUMMY", DATASET_NAMES, "Dummy"),
        ("liner", ("linear", "mamba"), "linear"),
    ],
)
def test_unknown_name_gets_the_nearest_one(typed: str, options: tuple[str, ...], hint: str) -> None:
    with pytest.raises(UserInputError) as caught:
        look_up(typed, options, "--flag")
    message = str(caught.value)
    assert message.startswith(f"--flag: unknown name '{typed}'. Did you mean '{hint}'?")
    assert message.endswith(f"Known: {', '.join(options)}.")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("--task", "Did you mean '--downstream_task'?"),  # and not '--fc_atlas', of like letters
        ("--split", "Did you mean '--val_split' or '--train_split'?"),
        ("--fc_atls", "Did you mean '--fc_atlas'?"),
        ("--TRAIN_SPLIT", "Did you mean '--train_split'?"),
        ("--xyz", "Known: --fc_atlas"),
    ],
)
def test_a_word_of_a_flag_is_nearer_than_its_letters(typed: str, hint: str) -> None:
    flags = ("--fc_atlas", "--downstream_task", "--val_split", "--train_split", "--pools")
    with pytest.raises(UserInputError) as caught:
        look_up(typed, flags, "flag")
    assert f"flag: unknown name '{typed}'. {hint}" in str(caught.value)


def test_a_long_list_is_named_and_not_printed() -> None:
    flags = [f"--flag_{i}" for i in range(21)]
    with pytest.raises(UserInputError) as caught:
        look_up("--xyz", flags, "flag", "--help")
    assert str(caught.value) == "flag: unknown name '--xyz'. --help lists all 21."
    with pytest.raises(UserInputError, match="Known: --flag_0, --flag_1"):
        look_up("--xyz", flags, "column")  # no other place has them


def test_unknown_name_without_a_neighbour_gets_the_list_only() -> None:
    with pytest.raises(UserInputError) as caught:
        look_up("qqqq", ("linear", "mamba"), "--flag")
    assert str(caught.value) == "--flag: unknown name 'qqqq'. Known: linear, mamba."


def test_long_lists_are_shown_only_without_a_hint() -> None:
    options = [f"option_{i}" for i in range(21)]
    with pytest.raises(UserInputError) as hinted:
        look_up("option_x", options, "--flag")
    assert "Did you mean 'option_" in str(hinted.value) and "Known" not in str(hinted.value)
    with pytest.raises(UserInputError, match="Known: option_0, option_1"):
        look_up("##", options, "--flag")


def test_aliases() -> None:
    assert canonical_dataset_name("HCP") == "S1200"
    assert [canonical_dataset_name(name) for name in DATASET_NAMES] == list(DATASET_NAMES)
    assert [canonical_head_name(name) for name in ("linear", "v1", "mamba")] == [
        "linear",
        "linear",
        "mamba",
    ]
    with pytest.raises(UserInputError, match=r"--dataset_name.*Did you mean 'S1200'"):
        canonical_dataset_name("S120")
    with pytest.raises(UserInputError, match=r"--clf_head_version.*Did you mean 'mamba'"):
        canonical_head_name("mambaa")


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "fmamb"}, "--model: unknown name 'fmamb'. Did you mean 'fmamba'"),
        ({"mamba_pe_method": "nerv"}, "--mamba_pe_method: .*Did you mean 'nerf'"),
        ({"background": "max"}, "background: unknown name"),
        ({"img_size": (96, 96, 96)}, r"--img_size: got \[96, 96, 96\], expected four numbers"),
        ({"patch_size": (6, 6, 6, 2, 1)}, "--patch_size: got .* expected four numbers"),
        ({"img_size": (96, 0, 96, 20)}, "--img_size: got 0, expected a number greater than 0"),
        ({"img_size": (96, -96, 96, 20)}, "--img_size: got -96"),
        ({"patch_size": (6, 6, 0, 2)}, "--patch_size: got 0"),
        ({"img_size": (95, 96, 96, 20)}, "axis X has 95, .* 6 does not divide. Use 90 or 96"),
        ({"img_size": (96, 97, 96, 20)}, "axis Y has 97, .* Use 96 or 102"),
        ({"img_size": (96, 96, 4, 20)}, "axis Z has 4, .* Use 6, or another"),
        ({"img_size": (96, 96, 96, 19)}, "axis T has 19, .* 2 does not divide. Use 18 or 20"),
        ({"in_chans": 0}, "--in_chans: got 0"),
        ({"embed_dim": 0}, "--embed_dim: got 0"),
        ({"embed_dim": -4}, "--embed_dim: got -4"),
        ({"depth": 0}, "--depth: got 0"),
        ({"expand": 0}, "--expand: got 0"),
        ({"ngroups": 0}, "--ngroups: got 0"),
        ({"ngroups": 2}, "--ngroups: got 2; every published size uses 1"),
        ({"d_conv": 0}, "--d_conv: got 0"),
        ({"depth": INF}, "--depth: got inf"),
        ({"dropout": 1.0}, "--dropout: got 1.0"),
        ({"dropout": -0.1}, "--dropout: got -0.1"),
        ({"dropout": NAN}, "--dropout: got nan"),
        ({"embed_dim": 30}, "--embed_dim: got 30, expected a multiple of 4"),
        ({"d_state": -1}, "--d_state: got -1"),
        ({"headdim": -1}, "--headdim: got -1"),
        ({"embed_dim": 64, "headdim": 48}, "= 128 is not a multiple of --headdim 48"),
        ({"embed_dim": 20, "mamba_pe_method": "ff"}, "--mamba_pe_method ff needs a multiple of 8"),
        ({"embed_dim": 20, "mamba_pe_method": "cpe"}, "cpe needs a multiple of 8"),
    ],
)
def test_model_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        ModelConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset_name": ("HPC",)}, "--dataset_name: .*Did you mean 'HCP'"),
        ({"image_path": ()}, r"--image_path: got 0 folder\(s\) for 1 data set"),
        ({"dataset_name": ("HCP", "ABCD")}, r"--image_path: got 1 folder\(s\) for 2 data set"),
        ({"input_scaling_method": "znorm"}, "--input_scaling_method: .*Did you mean 'znorm_"),
        ({"sequence_length": 0}, "--sequence_length: got 0"),
        ({"stride_between_seq": 0.0}, "--stride_between_seq: got 0.0"),
        ({"stride_between_seq": NAN}, "--stride_between_seq: got nan"),
        ({"stride_within_seq": 0}, "--stride_within_seq: got 0"),
        ({"batch_size": 0}, "--batch_size: got 0, expected a number greater than 0"),
        ({"eval_batch_size": -1}, "--eval_batch_size: got -1"),
        ({"num_workers": -1}, "--num_workers: got -1, expected a number 0 or more"),
        ({"prefetch_factor": 0}, "--prefetch_factor: got 0"),
        ({"window_cache": "all"}, "--window_cache: got 'all', expected gigabytes or 'auto'"),
        ({"window_cache": NAN}, "--window_cache: got nan"),
        ({"seed": -1}, "--seed: got -1"),
        ({"seed": 2**32}, "--seed: got 4294967296"),
        ({"train_split": 0.0}, "--train_split/--val_split: got 0.0 and 0.1"),
        ({"train_split": 1.0, "val_split": 0.0}, "--train_split/--val_split: got 1.0"),
        ({"val_split": -0.1}, "--train_split/--val_split: .* -0.1"),
        ({"val_split": NAN}, "--train_split/--val_split: .* nan"),
        ({"train_split": 0.8, "val_split": 0.3}, r"--train_split \+ --val_split: got 1.1"),
        ({"limit_training_samples": 0}, "--limit_training_samples: got 0"),
        ({"limit_validation_samples": -2}, "--limit_validation_samples: got -2"),
        ({"limit_test_samples": 1.5}, "--limit_test_samples: got 1.5"),
        ({"limit_training_samples": NAN}, "--limit_training_samples: got nan"),
        ({"limit_training_samples": INF}, "--limit_training_samples: got inf"),
        ({"num_train_fMRI_segments": 0}, "--num_train_fMRI_segments: got 0"),
    ],
)
def test_data_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        data(**values)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (HeadConfig, {"name": "v1"}, "--clf_head_version: unknown name 'v1'"),
        (HeadConfig, {"out_features": 0}, "out_features: got 0"),
        (HeadConfig, {"mamba_depth": 0}, "mamba_depth: got 0"),
        (HeadConfig, {"dropout": 1.0}, "--head_dropout: got 1.0"),
        (HeadConfig, {"dropout": -0.5}, "--head_dropout: got -0.5"),
        (HeadConfig, {"pool": "means"}, "--pool: unknown name 'means'"),
        (HeadConfig, {"norm": "layer"}, "--head_norm: unknown name 'layer'"),
        (HeadConfig, {"name": "mamba", "pool": "regions"}, "--pool: only used with"),
        (HeadConfig, {"name": "mamba", "norm": "batch"}, "--head_norm: only used with"),
        (PretrainConfig, {"objective": "mlm"}, "objective: .*Did you mean 'mim'"),
        (PretrainConfig, {"masking_type": "tubes"}, "--masking_type: .*Did you mean 'tube'"),
        (PretrainConfig, {"mask_ratio": 0.0}, "--mask_ratio: got 0.0"),
        (PretrainConfig, {"mask_ratio": 1.0}, "--mask_ratio: got 1.0"),
        (PretrainConfig, {"mask_ratio": NAN}, "--mask_ratio: got nan"),
        (PretrainConfig, {"predict": "same"}, "--predict: unknown name 'same'"),
        (PretrainConfig, {"loss_on": "tokens"}, "--loss_on: .*Did you mean 'token'"),
        (PretrainConfig, {"predict_ahead": 2}, "--predict_ahead: only used with --predict same"),
        (PretrainConfig, {"loss_on": "difference"}, "--loss_on: only used with --predict same"),
        (PretrainConfig, {"predict": "same_place", "predict_ahead": 0}, "--predict_ahead: got 0"),
        (PretrainConfig, {"objective": "mim", "predict": "same_place"}, "--predict: only used"),
        (ModelConfig, {"token_order": "time"}, "--token_order: unknown name 'time'"),
        (DownstreamConfig, {"task": "sexx"}, "--downstream_task: .*Did you mean 'sex'"),
        (DownstreamConfig, {"task_type": "regresion"}, "Did you mean 'regression'"),
        (DownstreamConfig, {"task_type": "regression"}, "task 'sex' is a classification"),
        (DownstreamConfig, {"task": "age", "task_type": "classification"}, "is a regression"),
        (DownstreamConfig, {"label_scaling_method": "minmx"}, "Did you mean 'minmax'"),
        (DownstreamConfig, {"label_smoothing": 1.0}, "--label_smoothing: got 1.0"),
        (DownstreamConfig, {"label_smoothing": -0.1}, "--label_smoothing: got -0.1"),
        (DownstreamConfig, {"shuffle_labels": -1}, "--shuffle_labels: got -1"),
        (OptimConfig, {"optimizer": "AdmW"}, "--optimizer: .*Did you mean 'AdamW'"),
        (OptimConfig, {"learning_rate": -1e-4}, "--learning_rate: got -0.0001"),
        (OptimConfig, {"learning_rate": 0.0}, "--learning_rate: got 0.0"),
        (OptimConfig, {"learning_rate": NAN}, "--learning_rate: got nan"),
        (OptimConfig, {"weight_decay": -1.0}, "--weight_decay: got -1.0"),
        (OptimConfig, {"gamma": 0.0}, "--gamma: got 0.0"),
        (OptimConfig, {"warmup": 1.0}, "--warmup: got 1.0"),
        (OptimConfig, {"warmup": -0.1}, "--warmup: got -0.1"),
        (OptimConfig, {"cycle": 0.0}, "--cycle: got 0.0"),
        (OptimConfig, {"cycle": 1.1}, "--cycle: got 1.1"),
        (OptimConfig, {"min_lr_ratio": 1.0}, "--min_lr_ratio: got 1.0"),
        (OptimConfig, {"momentum": 1.0}, "--momentum: got 1.0"),
    ],
)
def test_others_refuse(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        cls(**values)


def test_bounds_that_are_allowed() -> None:
    """The refusals above do not reach too far."""
    data(num_workers=0, train_split=0.8, val_split=0.2, limit_training_samples=1.0)
    data(train_split=0.7, val_split=0.1 + 0.2, limit_test_samples=12, seed=2**32 - 1)
    data(persistent_workers=True, num_workers=1, limit_validation_samples=1e-3)
    OptimConfig(weight_decay=0.0, warmup=0.0, cycle=1.0, min_lr_ratio=0.0, momentum=0.0, gamma=2.0)
    DownstreamConfig(label_smoothing=0.0, shuffle_labels=0)
    ModelConfig(embed_dim=20, d_state=3, mamba_pe_method="nerf")
    ModelConfig(embed_dim=30, d_state=7)  # the rule of the state size binds only its default


# ----------------------------------------------------------------------- derived values


@pytest.mark.parametrize(("name", "embed_dim"), list(VARIANTS.items()))
def test_published_variants(name: str, embed_dim: int) -> None:
    config = load_model_config(f"configs/neuromamba_{name}.yaml")
    assert config == ModelConfig(embed_dim=embed_dim)
    assert (config.d_state, config.headdim, config.nheads) == (embed_dim // 4, embed_dim, 2)
    assert config.token_grid == (16, 16, 16, 10)
    assert (config.num_tokens, config.token_dim, config.depth) == (40_960, 432, 12)


def test_derived_sizes() -> None:
    config = ModelConfig(
        img_size=(30, 36, 24, 10),
        patch_size=(5, 4, 3, 2),
        in_chans=3,
        embed_dim=24,
        expand=3,
        headdim=8,
        d_state=5,
    )
    assert (config.d_inner, config.nheads, config.d_state, config.headdim) == (72, 9, 5, 8)
    assert config.token_grid == (6, 9, 8, 5)
    assert (config.num_tokens, config.token_dim) == (6 * 9 * 8 * 5, 5 * 4 * 3 * 2 * 3)


@pytest.mark.parametrize(
    ("length", "within", "between", "span", "step"),
    [
        (20, 1, 1.0, 20, 20),
        (20, 3, 1.0, 58, 60),
        (20, 2, 0.5, 39, 20),
        (10, 1, 2.5, 10, 25),
        (1, 1, 1.0, 1, 1),
        (4, 1, 0.01, 4, 1),  # never less than a frame
        (10, 1, 0.16, 10, 2),  # rounded, not cut off
    ],
)
def test_windows(length: int, within: int, between: float, span: int, step: int) -> None:
    config = data(sequence_length=length, stride_within_seq=within, stride_between_seq=between)
    assert (config.window_span, config.window_step) == (span, step)


def test_other_derived_values() -> None:
    assert data(batch_size=7).eval_batch_size == 7
    assert data(batch_size=7, eval_batch_size=3).eval_batch_size == 3
    several = data(dataset_name=("HCP", "S1200", "UKB"), image_path=("a", "b", "c"))
    assert several.dataset_name == ("S1200", "S1200", "UKB")
    for name, task in TASKS.items():
        config = DownstreamConfig(task=name)
        assert config.task_type == task.type
        expected = task.num_classes if task.type == "classification" else 1
        assert config.out_features == expected
    assert DownstreamConfig(task="diagnosis").out_features == 2
    assert DownstreamConfig(task="age").out_features == 1


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ModelConfig().depth = 3  # type: ignore[misc]


# --------------------------------------------------------------------- plain containers

EXAMPLES = [
    ModelConfig(img_size=(12, 12, 12, 4), embed_dim=32, dropout=0.1, mamba_pe_method="cpe"),
    HeadConfig(name="mamba", out_features=3, dropout=0.2, mamba_depth=1),
    data(dataset_name=("HCP", "UKB"), image_path=("a", "b"), limit_test_samples=0.5, seed=3),
    PretrainConfig(objective="mim", mask_ratio=0.5, masking_type="tube"),
    PretrainConfig(predict="same_place", predict_ahead=3, loss_on="difference"),
    DownstreamConfig(task="age", label_scaling_method="minmax", shuffle_labels=4),
    OptimConfig(optimizer="SGD", learning_rate=0.1, warmup=0.0),
]


def only_plain(value: Any) -> bool:
    """The types exactly: subclasses would not survive ``weights_only=True`` or YAML."""
    if type(value) is dict:
        return all(type(k) is str and only_plain(v) for k, v in value.items())
    if type(value) is list:
        return all(map(only_plain, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda config: type(config).__name__)
def test_round_trip(config: Any) -> None:
    plain = to_dict(config)
    assert only_plain(plain)
    assert from_dict(type(config), plain, "test") == config
    assert from_dict(type(config), yaml.safe_load(yaml.safe_dump(plain)), "test") == config
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert from_dict(type(config), torch.load(file, weights_only=True), "test") == config


def test_round_trip_keeps_derived_values_explicit() -> None:
    """Metadata still means the same should the paper's rule for defaults ever change."""
    plain = to_dict(ModelConfig(embed_dim=128))
    assert (plain["d_state"], plain["headdim"]) == (32, 128)
    assert plain["img_size"] == [96, 96, 96, 20]


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (ModelConfig, {"embed_dm": 128}, "file.yaml: unknown name 'embed_dm'. Did you mean 'embed"),
        (ModelConfig, {"embed_dim": "192"}, "file.yaml: embed_dim: got '192', expected int"),
        (ModelConfig, {"depth": 2.5}, "depth: got 2.5, expected int"),
        (ModelConfig, {"depth": True}, "depth: got True, expected int"),
        (ModelConfig, {"keep_background": "no"}, "keep_background: got 'no', expected bool"),
        (ModelConfig, {"img_size": 96}, "img_size: got 96, expected tuple"),
        (ModelConfig, {"img_size": [96, "96", 96, 20]}, "img_size: got .*expected tuple"),
        (OptimConfig, {"learning_rate": "1e-4"}, "learning_rate: got '1e-4', expected float"),
        (DataConfig, {"limit_test_samples": "all"}, r"got 'all', expected float \| None"),
        (DataConfig, {"dataset_name": "HCP"}, r"got 'HCP', expected tuple\[str"),
    ],
)
def test_from_dict_refuses(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        from_dict(cls, values, "file.yaml")


def test_from_dict_takes_whole_numbers_as_floats() -> None:
    assert from_dict(OptimConfig, {"weight_decay": 0}, "test").weight_decay == 0.0


# --------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"depth: 1: 2", "is not valid YAML"),
        (b"- depth\n- 2", "must hold 'flag: value' lines"),
        (b"\xff\xfe\x00\x80", "is not valid YAML"),
    ],
)
def test_read_yaml_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=f"--config: .*c.yaml' {message}") as caught:
        read_yaml(path, "--config")
    assert "\n" not in str(caught.value)


def test_read_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("depth: 3\nimg_size: [6, 6, 6, 2]\n", encoding="utf-8")
    assert read_yaml(path, "--config") == {"depth": 3, "img_size": [6, 6, 6, 2]}
    path.write_text("", encoding="utf-8")
    assert read_yaml(path, "--config") == {}
    for absent in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UserInputError, match="--config: cannot read"):
            read_yaml(absent, "--config")


def test_model_file_with_training_flags(tmp_path: Path) -> None:
    """Only the model's fields are used; a file without any is refused."""
    path = tmp_path / "run.yaml"
    path.write_text("embed_dim: 32\nlearning_rate: 0.1\n", encoding="utf-8")
    assert load_model_config(path) == ModelConfig(embed_dim=32)
    path.write_text("learning_rate: 0.1\n", encoding="utf-8")
    with pytest.raises(UserInputError, match="says nothing about the model"):
        load_model_config(path)


def test_files_name_the_grid_as_version_0_1_0_did() -> None:
    """``img_size`` is four numbers in Python; the metadata of a checkpoint keep their keys."""
    config = DataConfig(image_path=("store",), grid=(12, 14, 16))
    written = to_dict(config)
    assert written["img_size"] == [12, 14, 16] and "grid" not in written
    assert from_dict(DataConfig, written, "checkpoint") == config
    with pytest.raises(UserInputError, match="checkpoint: img_size: got 12, expected tuple"):
        from_dict(DataConfig, written | {"img_size": 12}, "checkpoint")
    with pytest.raises(UserInputError, match="unknown name 'grid'"):
        from_dict(DataConfig, {"grid": [12, 14, 16]}, "checkpoint")


@pytest.mark.parametrize(
    ("task", "pretrained", "expected"),
    [
        ({}, False, "from scratch"),
        ({}, True, "full fine-tuning"),
        ({"freeze_feature_extractor": True}, True, "frozen backbone"),
        ({"lora_rank": 4}, True, "LoRA of rank 4"),
    ],
)
def test_modes_of_a_downstream_task(task: dict[str, Any], pretrained: bool, expected: str) -> None:
    assert DownstreamConfig(**task).mode(pretrained) == expected


@pytest.mark.parametrize("cls", CONFIGURATIONS)
def test_configurations_take_keywords_only(cls: Any) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        cls("something")
