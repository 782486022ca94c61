"""What a flag changes, for the tests of flags: observations, common settings and tables."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import torch

from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.fmamba.dry_run import describe_plan
from neuromamba.layers.mamba2 import Mamba2
from tests.helpers.tiny import SUBJECTS, CommandLine, Finished

AGE = "--downstream_task age"
NEXT = "--pretraining --use_autoregressive"
MIM = "--pretraining --use_mim"
SAME_PLACE = f"{NEXT} --predict same_place"
SGD = "--optimizer SGD"
SWIFT = "--model swift --swin_depths 1 1 --swin_heads 2 4"
TWO_STORES = "--dataset_name Dummy S1200 --image_path {store} {other}"
OWN = "--label_csv own.csv --target_column group"
AUGMENT = "--augment_during_training"
VOXELWISE = "--input_scaling_method voxelnorm_zeroback"
FEATURES = ("feature_rank", "feature_std", "knn_subject", "knn_subject_chance")
TOKENS = ("loss", "persistence_loss", "mean_token_loss", "sequence_skill", "anatomy_share")
STEPS = (
    *("skill", "dynamic_skill", "step_loss", "step_persistence_loss", "step_mean_loss"),
    *("jump_loss", "jump_persistence_loss"),
)


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


def predictions(done: Finished, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(done.folder / name, newline="") as stream:
        return list(csv.DictReader(stream))


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "train/seconds"}


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
        f"sub-{i + 1:02d};sub-{SUBJECTS - i:02d};{'abbb'[i % 4]};{'lr'[i // 5 % 2]};{'pqz'[i % 3]}"
        for i in numbers
    ]
    text = "\n".join(["subject;twin;group;hand;third", *rows]) + "\n"
    (cli.folder / "own.csv").write_text(text)
    # 12 frames of 2 s; a window of 4 frames fits into each event, unless they are moved.
    events = "onset\tduration\ttrial_type\n0\t8\tface\n8\t8\thouse\n16\t8\tface\n"
    (cli.folder / "events.tsv").write_text(events)
