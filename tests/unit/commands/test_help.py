"""The command line answers before anything slow is imported, and helps with wrong words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neuromamba import __version__
from neuromamba.__main__ import COMMANDS, main
from tests.helpers.loaded_modules import LIGHTNING, MEDICAL, run_and_count

NAMES = [name for group in COMMANDS.values() for name in group]
# Modules that Python has loaded when a command has answered without computing anything; a plain
# interpreter has about 140. Counted, because seconds depend on who else computes.
MOST_MODULES = 340


def run(*words: str, cwd: Path | None = None) -> tuple[int, list[str], str, str]:
    """Status, slow packages, output and errors of ``neuromamba WORDS``, which loads few modules."""
    status, slow, modules, output, errors = run_and_count(*words, cwd=cwd)
    assert modules < MOST_MODULES, words
    return status, slow, output, errors


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command_is_quick_and_has_an_example(name: str) -> None:
    status, slow, output, _ = run(*name.split(), "--help")
    assert (status, slow) == (0, [])
    assert output.startswith(f"usage: neuromamba {name} ")
    assert re.search(rf"^    neuromamba {name}\b", output, re.M), "no example"


def test_every_summary_says_what_the_command_does() -> None:
    for group in COMMANDS.values():
        for name, command in group.items():
            assert re.fullmatch(r"[a-z].*[^.]", command.summary), name
            assert len(name) < 27 and len(command.summary) < 70


@pytest.mark.parametrize(("words", "groups"), [((), 6), (("regions",), 3)])
def test_list_of_commands(words: tuple[str, ...], groups: int) -> None:
    for asked in ((*words, "--help"), ("help", *words), (*words, "help")):
        status, slow, output, _ = run(*asked)
        assert (status, slow) == (0, [])
        assert len(re.findall(r"^[a-z].*:$", output, re.M)) == groups
        listed = re.findall(r"^  ((?:[a-z-]+ )+) +", output, re.M)
        assert [name.strip() for name in listed] == [
            n for n in NAMES if n.startswith("".join(words))
        ]
    assert run(*words)[0] == 2


def test_help_of_a_command_by_the_word_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("export", "regions extract"):
        with pytest.raises(SystemExit, match="0"):
            main(["help", *words.split()])
        assert capsys.readouterr().out.startswith(f"usage: neuromamba {words} ")


def test_an_empty_name_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable of a script that is not set."""
    for words in ([""], ["regions", ""]):
        assert main(words) == 2
        assert "error: command: unknown name '" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"neuromamba {__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("trian", "train"),
        ("check_store", "check-store"),
        ("regions explain-ref", "regions explain-reference"),
        ("region train", "regions"),
    ],
)
def test_an_unknown_command_gets_the_nearest(
    words: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert f"Did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --embed_dimm 3", "Did you mean '--embed_dim'?"),
        ("train --config none.yaml", "--config: cannot read"),
        ("train --label_smoothing 2 --head_dropout 1", "--label_smoothing"),
        ("train --load_model_path none.ckpt", "--load_model_path: there is no file 'none.ckpt'"),
        ("train --test_only", "--test_only: needs --test_ckpt_path"),
        ("train --accelerator npu", "--accelerator: unknown name 'npu'"),
        ("train --precision 8", "--precision: unknown name '8'"),
        ("train --strategy dp", "--strategy: unknown name 'dp'"),
        ("train --devices none", "--devices: got 'none'"),
        ("train --deepspeed_autocast", "--deepspeed_autocast: belongs to a DeepSpeed strategy"),
        ("train --dataset_name S1200 --image_path none", "--image_path: no folder 'none'"),
        ("train --resume_ckpt_path none", "--resume_ckpt_path: there is no file 'none'"),
        ("train --label_csv none --target_column a", "none: cannot read the table"),
        ("profile --precision 8", "--precision: unknown name '8'"),
        ("report none", "none: no run folder"),
        ("plan --gpus 8 --test_only", "--test_only: a flag of neuromamba train"),
        ("flops --patch_size 7 7 7 2", "--patch_size"),
        ("profile --profile_batches 0", "--profile_batches: got 0"),
        ("preprocess --input in --output out --min_frames 0", "--min_frames: got 0"),
        ("check-store --image_path store --sample 2", "--sample: got 2"),
        ("quality --image_path store --frames 1", "--frames: got 1"),
        ("export none.ckpt out.pt", "CHECKPOINT: there is no file 'none.ckpt'"),
        ("probe none.ckpt", "RUN: there is no file 'none.ckpt'"),
        ("probe none.ckpt --pools maen", "--pools: unknown name 'maen'"),
        ("probe none.ckpt --json rows.csv", "--json: got 'rows.csv'"),
        ("export none.ckpt out.bin", "OUTPUT: got 'out.bin'"),
        ("reproduce --table 9", "--table: unknown name '9'"),
        ("synthetic --output out --frames 3", "--frames: got 3"),
        ("regions train --dataset HCP", "--dataset: unknown name"),
        ("regions extract --input in", "required: --output, --atlas"),
        ("regions extract --input in --output o.npy --atlas a", "--input: 'in' does not exist"),
        ("regions synthetic --dataset PPMI --output out --subjects 0", "--subjects: got 0"),
        ("regions explain-reference --root r --out o --draws 0", "--draws: got 0"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_slow_is_imported(
    words: str, message: str, tmp_path: Path
) -> None:
    status, slow, _, errors = run(*words.split(), cwd=tmp_path)
    assert message in errors
    assert (status, slow) == (2, [])
    assert "Traceback" not in errors and list(tmp_path.iterdir()) == []


TINY = (
    "--downstream_task sex --img_size 24 24 24 8 --embed_dim 16 --depth 2 --accelerator cpu "
    "--max_epochs 1"
)


@pytest.mark.parametrize(
    ("words", "most", "without"),
    [
        (f"train {TINY} --dataset_name Dummy --dry_run", 1350, {*LIGHTNING, *MEDICAL, "scipy"}),
        (f"train {TINY} --dataset_name S1200 --image_path x --dry_run", 1350, LIGHTNING | MEDICAL),
        ("train --pretraining --use_mim --dataset_name Dummy --dry_run", 1350, LIGHTNING | MEDICAL),
        ("doctor", 1350, {*LIGHTNING, *MEDICAL, "scipy", "matplotlib"}),
        ("doctor --image_path none", 1350, {*LIGHTNING, *MEDICAL, "scipy", "matplotlib"}),
        ("plan --gpus 8 --gpu A100-80GB", 1350, {*LIGHTNING, *MEDICAL, "scipy", "matplotlib"}),
    ],
)
def test_what_describes_a_training_loads_nothing_that_trains(
    words: str, most: int, without: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch alone has some 1,120 modules here, Lightning brings 2,600 more."""
    monkeypatch.setenv("NEUROMAMBA_CACHE", str(tmp_path / "cache"))
    if words.startswith("plan"):  # the brain mask that takes nilearn is kept from the first call on
        status, _, _, first, _ = run_and_count(*words.split(), cwd=tmp_path)
        assert status == 0
    status, slow, modules, output, errors = run_and_count(*words.split(), cwd=tmp_path)
    assert status in (0, 1), errors
    assert not without & set(slow)
    assert modules < most
    if words.startswith("plan"):
        assert _tokens(output) == _tokens(first)


def _tokens(plan: str) -> list[str]:
    return [line for line in plan.splitlines() if "tokens" in line and "voxels" not in line]
