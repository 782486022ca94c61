"""Bad input: one line that names the flag or file, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from neuromamba.commands.train import main
from neuromamba.data.windows.run_data import RunData
from tests.helpers.tiny import CommandLine, write_tiny_run

NEXT = "--pretraining --use_autoregressive"


def test_without_image_path(refused: Callable[..., str]) -> None:
    assert "--image_path: not given" in refused("", ["--dataset_name", "S1200"])
    assert "expected one argument" in refused("", ["--seed"])


# --config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 3", "unknown name 'batch_sise'. Did you mean 'batch_size'?"),
        ("batch_size: [3", "not valid YAML"),
        ("- batch_size", "must hold 'flag: value' lines"),
        ("batch_size: {a: 1}", "'batch_size' holds a mapping"),
        ("pretraining: 3", "'pretraining' is 3, expected true or false"),
        ("batch_size: many", "--batch_size: invalid int value: 'many'"),
        ("embed_dim: 18", "--embed_dim: got 18"),
        ("augment_strength: 0.1", "--augment_strength"),
        ("batch_size: \udcff", "not valid YAML"),
    ],
)
def test_config_files(
    cli: CommandLine, refused: Callable[..., str], text: str, message: str
) -> None:
    Path("bad.yaml").write_bytes(text.encode(errors="surrogateescape"))
    argv = cli.argv("--config bad.yaml")
    for flag in ("--batch_size", "--embed_dim"):  # would override the file
        del argv[argv.index(flag) : argv.index(flag) + 2]
    assert message in refused("", argv)


# Stores and labels ------------------------------------------------------------------------------


def rewrite_labels(store: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
    path = store / "metadata" / "participants.csv"
    with open(path, newline="") as stream:
        rows = [row for row in map(change, csv.DictReader(stream)) if row]
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_labels_missing_for_some_subjects(cli: CommandLine, refused: Callable[..., str]) -> None:
    lost = {"sub-03": None, "sub-17": None}
    rewrite_labels(cli.store, lambda row: lost.get(row["subject"], row))
    message = refused("")
    assert "has no label for 2 of 20 subjects: sub-03, sub-17" in message
    assert "--bad_subj_path" in message


def test_unknown_label(cli: CommandLine, refused: Callable[..., str]) -> None:
    rewrite_labels(cli.store, lambda row: row | {"age": row["age"].replace("24", "young")})
    assert "unknown values for 1 subject(s) (sub-03: 'young')" in refused("--downstream_task age")


def test_class_absent_from_the_training_subjects(
    cli: CommandLine, refused: Callable[..., str]
) -> None:
    cli.run(NEXT)  # keeps the split: a new one would be drawn with both classes in every part
    training = set(cli.data().subjects["train"][0])
    rewrite_labels(
        cli.store, lambda row: row | ({"sex": "F"} if row["subject"] in training else {})
    )
    assert "the training subjects hold no 'male' (12 female, 0 male)" in refused("")


def test_constant_regression_target(cli: CommandLine, refused: Callable[..., str]) -> None:
    rewrite_labels(cli.store, lambda row: row | {"age": "40"})
    assert "all 12 training subjects have the same age" in refused("--downstream_task age")


def test_no_metadata(cli: CommandLine, refused: Callable[..., str]) -> None:
    shutil.rmtree(cli.store / "metadata")
    assert "--image_path: no CSV or TSV file in" in refused("")
    cli.run(NEXT)  # needs no labels


def test_task_that_the_cohort_lacks(refused: Callable[..., str]) -> None:
    message = refused("--dataset_name UKB --downstream_task diagnosis")
    assert "--downstream_task: the data set UKB has no target for 'diagnosis'" in message


def test_everybody_excluded(cli: CommandLine, refused: Callable[..., str]) -> None:
    Path("bad.txt").write_text("\n".join(p.stem for p in (cli.store / "hdf5").glob("*.h5")))
    assert "no training subject is left" in refused("--bad_subj_path bad.txt")


def test_empty_store(cli: CommandLine, refused: Callable[..., str]) -> None:
    for path in (cli.store / "hdf5").glob("*.h5"):
        path.unlink()
    assert "holds no runs (hdf5/ is empty)" in refused("")
    Path("file").write_text("")
    assert "'file' is a file" in refused("--image_path file")


@pytest.mark.parametrize("keep", [0, 100, 4000])
def test_truncated_run(cli: CommandLine, refused: Callable[..., str], keep: int) -> None:
    path = cli.store / "hdf5" / "sub-05.h5"
    path.write_bytes(path.read_bytes()[:keep])
    assert "sub-05.h5: not a readable HDF5 file" in refused("")


def test_run_of_another_grid(cli: CommandLine, refused: Callable[..., str]) -> None:
    (train, *_) = cli.data().subjects["train"][0]
    write_tiny_run(cli.store / "hdf5" / f"{train}.h5", train, 1, grid=(14, 12, 12))
    message = refused("")
    assert f"{train}.h5' has the grid 14 12 12, expected 12 12 12" in message


def test_split_of_other_fractions(cli: CommandLine, refused: Callable[..., str]) -> None:
    cli.run("--max_steps 1")
    message = refused("--train_split 0.7")
    assert message.startswith("--train_split: ") and "drawn with --train_split 0.6" in message


# Checkpoints ------------------------------------------------------------------------------------

GIVEN = ("--load_model_path {}", "--resume_ckpt_path {}", "--test_only --test_ckpt_path {}")


class Foreign:
    """An object that loading would have to build by running code."""


@pytest.mark.parametrize("given", GIVEN)
def test_checkpoint_that_needs_unpickling(refused: Callable[..., str], given: str) -> None:
    torch.save({"state_dict": {"norm.weight": torch.ones(16)}, "extra": Foreign()}, "model.ckpt")
    message = refused(given.format("model.ckpt"))
    assert "Foreign" in message and "would run code" in message


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_checkpoint(
    cli: CommandLine, refused: Callable[..., str], given: str, damage: str
) -> None:
    torch.save({"norm.weight": torch.ones(1000)}, "whole.ckpt")
    whole = Path("whole.ckpt").read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "text": b"no weights\n", "empty": b""}
    Path("model.ckpt").write_bytes(damaged[damage])
    message = refused(given.format("model.ckpt"))
    assert "'model.ckpt' is" in message and "damaged" in message
    assert message.startswith(given.split(" {")[0].split()[-1])


def test_checkpoint_without_tensors(refused: Callable[..., str]) -> None:
    torch.save({"state_dict": {}}, "model.ckpt")
    assert "holds no tensors" in refused("--load_model_path model.ckpt")
    torch.save([1, 2], "list.ckpt")
    assert "holds a list" in refused("--load_model_path list.ckpt")
    Path("folder").mkdir()
    assert "'folder' is a folder" in refused("--load_model_path folder")


@pytest.fixture
def pretrained(cli: CommandLine) -> Path:
    """Checkpoint of a pre-trained backbone."""
    return cli.run(f"{NEXT} --max_steps 1").folder / "checkpoints" / "last.ckpt"


def without_card(path: Path, name: str) -> str:
    """A released file: a flat state dict with the published prefix."""
    state = torch.load(path, weights_only=True)["state_dict"]
    torch.save({f"_forward_module.{key}": value for key, value in state.items()}, name)
    return name


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("--embed_dim 32", ("tensors of another size", "embedder.projection is [432, 16]")),
        ("--depth 2", ("missing keys: mamba_layers.1.0.weight",)),
        ("--img_size 12 12 12 6", ("embedder.pos is [1, 16, 16]", "[1, 24, 16] in the model")),
        ("--patch_size 6 6 6 4", ("tensors of another size",)),
        ("--mamba_pe_method none", ("unexpected keys: embedder.pos",)),
    ],
)
def test_checkpoint_of_another_size(
    refused: Callable[..., str], pretrained: Path, extra: str, parts: tuple[str, ...]
) -> None:
    """A released file says nothing of its size; ours does, and the flag is named."""
    message = refused(f"--load_model_path {without_card(pretrained, 'released.pt')} {extra}")
    for part in ("--load_model_path: 'released.pt' does not fit", *parts):
        assert part in message
    message = refused(f"--load_model_path {pretrained} {extra}")
    flag = extra.split()[0]
    assert message.startswith(f"{flag}: got") and "was trained with" in message


def test_all_flags_that_differ_from_the_checkpoint(
    refused: Callable[..., str], pretrained: Path
) -> None:
    message = refused(f"--load_model_path {pretrained} --depth 2 --embed_dim 32")
    assert message.startswith("--embed_dim: got 32, --depth: got 2, but '")
    assert "trained with 16 (--embed_dim), 1 (--depth). Leave --embed_dim and --depth" in message


def test_scaling_other_than_the_checkpoints(refused: Callable[..., str], pretrained: Path) -> None:
    message = refused(f"--load_model_path {pretrained} --input_scaling_method minmax_minback")
    assert "--input_scaling_method: got minmax_minback" in message and "znorm_minback" in message


def test_orientation_other_than_the_checkpoints(
    refused: Callable[..., str], pretrained: Path
) -> None:
    checkpoint = torch.load(pretrained, weights_only=True)
    checkpoint["neuromamba"]["orientation"] = "RAS"
    other = pretrained.with_name("ras.ckpt")
    torch.save(checkpoint, other)
    message = refused(f"--load_model_path {other}")
    assert "ras.ckpt' was trained on RAS data, stores are LAS" in message


def test_testing_a_backbone_without_head(refused: Callable[..., str], pretrained: Path) -> None:
    message = refused(f"--test_only --test_ckpt_path {pretrained}")
    assert "is a pre-trained backbone without a task" in message


def test_testing_with_another_head(cli: CommandLine, refused: Callable[..., str]) -> None:
    best = cli.run("--max_steps 1").folder / "checkpoints" / "best.ckpt"
    message = refused(f"--test_only --test_ckpt_path {best} --clf_head_version mamba")
    assert "--clf_head_version: got mamba" in message and "was trained with linear" in message
    message = refused(f"--test_only --test_ckpt_path {best} --augment_during_training")
    assert message == "--augment_during_training: only used with training, not with --test_only."


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ("--embed_dim 32", "--resume_ckpt_path"),
        ("--clf_head_version mamba", "--resume_ckpt_path"),
        (NEXT, "--resume_ckpt_path"),
        ("--max_epochs 2", "learning rates planned for so many steps"),
        ("--optimizer SGD", "--optimizer AdamW, and this run has SGD"),
        ("--learning_rate 0.5", "--learning_rate 0.0001, and this run has 0.5"),
        ("--dataset_split_num 2", "a split of hash"),
        ("--input_scaling_method znorm_zeroback", "--input_scaling_method znorm_minback"),
        ("--seed 7", "--seed"),
        ("--shuffle_labels 1", "downstream shuffle_labels None"),
        ("--augment_during_training", "with augmentation none, and this run has {'affine': True"),
        ("--max_steps 5", "learning rates planned for so many steps: 9, and this run has 5"),
    ],
)
def test_resuming_another_run(
    cli: CommandLine, refused: Callable[..., str], extra: str, found: str
) -> None:
    last = cli.run().folder / "checkpoints" / "last.ckpt"
    assert found in refused(f"--resume_ckpt_path {last} {extra}")


def test_one_person_trained_on_and_tested(cli: CommandLine, refused: Callable[..., str]) -> None:
    best = cli.run().folder / "checkpoints" / "best.ckpt"
    message = refused(f"--test_only --test_ckpt_path {best} --image_path {another_split(cli)}")
    assert message.startswith("--test_ckpt_path") and "were trained on in" in message


def test_stores_whose_splits_disagree(refused: Callable[..., str], cli: CommandLine) -> None:
    other = another_split(cli)
    message = refused(f"{NEXT} --dataset_name Dummy Dummy --image_path {cli.store} {other}")
    assert "for training in one store and held out in another" in message
    message = refused(f"{NEXT} --dataset_name Dummy Dummy --image_path {cli.store} {cli.store}/.")
    assert "the same folder is given twice" in message


def another_split(cli: CommandLine) -> Path:
    """The store once more, without one subject and so with another split."""
    other = cli.folder / "elsewhere"
    shutil.copytree(cli.store, other, ignore=shutil.ignore_patterns("splits"))
    (other / "hdf5" / "sub-20.h5").unlink()
    config = cli.planned(f"--image_path {other}").config
    RunData(config.data)  # draws the split and keeps it
    return other


def test_diverging_training_fails(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(cli.argv("--optimizer SGD --learning_rate 1e30 --no-use_scheduler")) == 2
    assert "error: --learning_rate: the training loss is not a num" in capsys.readouterr().err


def test_interrupted_training_says_so(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning ends with SystemExit on Ctrl-C."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Trainer, "fit", interrupted)
    folder, last = cli.folder / "mine", "--resume_ckpt_path last"
    assert main(cli.argv("--process_code mine")) == 130
    assert capsys.readouterr().err.endswith(
        f"interrupted; what was written stays. Continue with {last}.\n"
    )
    assert main(cli.argv(f"--output_dir {folder} {last}")) == 130
    assert capsys.readouterr().err.endswith(f" Continue with {last}.\n")
    assert main(cli.argv("--project_name unnamed")) == 130
    (unnamed,) = Path("output/unnamed").iterdir()
    said = capsys.readouterr().err
    assert said.startswith("error: interrupted;")
    assert said.endswith(f" Continue with --output_dir {unnamed} {last}.\n")


def test_resuming_from_weights_alone(refused: Callable[..., str], pretrained: Path) -> None:
    released = without_card(pretrained, "released.pt")
    message = refused(f"{NEXT} --resume_ckpt_path {released}")
    assert message.startswith("--resume_ckpt_path") and "--load_model_path" in message


# Hardware and output folders --------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["--accelerator gpu", "--accelerator cuda --devices 4"])
def test_gpu_where_there_is_none(
    cli: CommandLine,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(extra)
    assert "--accelerator" in message and "GPU was asked for" in message
    assert main(cli.argv(f"{extra} --dry_run")) == 0
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["--output_dir file/run", "--output_dir file"])
def test_file_in_the_way_of_the_output_folder(refused: Callable[..., str], extra: str) -> None:
    Path("file").write_text("mine")
    message = refused(extra)
    assert message.startswith("--output_dir: cannot write to 'file")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, a folder nobody can write")
@pytest.mark.parametrize("extra", ["", "--loggername tensorboard", "--loggername wandb"])
def test_unwritable_output_folder(refused: Callable[..., str], extra: str) -> None:
    message = refused(f"--output_dir /proc/neuromamba/run {extra}")
    assert message.startswith("--output_dir: cannot write to '/proc/neuromamba/run'")


def test_project_folder_that_cannot_be_made(refused: Callable[..., str]) -> None:
    Path("output").write_text("mine")
    assert refused("").startswith("--project_name: cannot write to 'output/default/")


def test_folder_that_holds_a_run(cli: CommandLine, refused: Callable[..., str]) -> None:
    folder = cli.run("--max_steps 1").folder
    message = refused(f"--output_dir {folder} --seed 2")
    assert "already holds a run" in message
    assert f"--resume_ckpt_path {folder}/checkpoints/last.ckpt" in message


def test_folder_of_a_run_that_died_early(cli: CommandLine, refused: Callable[..., str]) -> None:
    """The remedy that is named works."""
    folder = cli.run("--max_steps 1").folder
    shutil.rmtree(folder / "checkpoints")
    message = refused(f"--output_dir {folder}")
    assert "it has no checkpoint yet" in message and "last.ckpt" not in message
    assert "start it anew with --resume_ckpt_path last. See docs" in message
    again = cli.run(f"--max_steps 1 --output_dir {folder} --resume_ckpt_path last")
    assert again.metrics["train/steps"] == 1


def test_embeddings_that_cannot_be_written(refused: Callable[..., str]) -> None:
    Path("file").write_text("mine")
    message = refused("--save_embedding --embedding_save_dir file/features")
    assert message.startswith("--embedding_save_dir: cannot write to 'file/features'")


def test_missing_hardware_is_told_whole(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is missing at once, not one thing an attempt."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("neuromamba.training.strategies.installed", lambda name: False)
    message = refused("--accelerator gpu --strategy deepspeed_stage_1")
    assert "GPU was asked for" in message and "DeepSpeed is not installed" in message
