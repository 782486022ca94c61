"""The FLOPs formula against torch's counter and hand-made sums; command line; the paper's table.

How every backend comes to the same count is tested in ``tests/numerics/test_flop_count.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from neuromamba.commands import flops as check_flops
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.reader import run_file_name
from neuromamba.data.store.writer import write_run
from neuromamba.planning import flop_report, flops
from neuromamba.planning.deepspeed_flops import Comparison
from neuromamba.training.hardware_flags import installed
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python

README_COMMAND = shlex.split(
    "--model fmamba --embed_dim 256 --depth 12 --patch_size 6 6 6 2 --img_size 96 96 96 20 "
    "--batch_size 1 --image_path /path/to/hcp_hdf5 --dataset_name HCP --downstream_task sex"
)
CONTRACT = {
    "parameters",
    "tokens_all",
    "tokens_brain",
    "tokens_source",
    "flops_per_window_all",
    "flops_per_window_brain",
    "training_flops_per_window_brain",
    "saving_percent",
    "windows_per_epoch",
    "flops_per_epoch",
}
SMALL = shlex.split("--embed_dim 16 --depth 1 --img_size 12 12 12 4 --patch_size 6 6 6 2")


def small_config(**changes: object) -> ModelConfig:
    fields = {"img_size": (12, 12, 12, 4), "embed_dim": 16, "depth": 2, **changes}
    return ModelConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize(
    "changes", [{}, {"embed_dim": 24, "headdim": 12, "depth": 3}, {"anatomy": True}]
)
def test_products_equal_flop_counter(tokens: int, changes: dict[str, int]) -> None:
    """Forward, and forward with backward, to the last FLOP."""
    config = small_config(**changes)
    terms = flops.forward_terms(config, tokens)
    forward = flops.profiled_flops(config, tokens)
    assert flops.total(terms, products_only=True) == forward
    training = flops.profiled_flops(config, tokens, True)
    assert flops.training_total(terms, products_only=True) == training
    assert forward < flops.total(terms) < 2 * forward


def test_terms_by_hand() -> None:
    """Base on 128 tokens: 2 chunks of 64; widths from the checkpoint's shapes."""
    terms = {t.name: t.flops for t in flops.forward_terms(ModelConfig(), 128)}
    assert terms["embedding"] == terms["output layer"] == 2 * 128 * 432 * 192
    assert terms["block: in_proj"] == 12 * 2 * 128 * 192 * 866
    assert terms["block: convolution"] == 12 * 2 * 128 * 480 * 4
    assert terms["block: scan, C B^T"] == 12 * 2 * (2 * 64 * 64 * 48)
    assert terms["block: scan, in chunks"] == 12 * 2 * 2 * (2 * 64 * 64 * 192)
    assert terms["block: scan, to states"] == 12 * 2 * 2 * (2 * 48 * 64 * 192)
    assert terms["block: out_proj"] == 12 * 2 * 128 * 384 * 192


def test_head_terms_and_parameters() -> None:
    config = small_config()
    linear, mamba = HeadConfig(out_features=2), HeadConfig(name="mamba", out_features=2)
    assert flops.head_parameter_count(linear, config) == 16 * 2 + 2
    assert flops.total(flops.head_terms(linear, config, 10)) == 10 * 16 + (2 * 16 + 1) * 2
    # A Mamba head of N = 1: in_proj 68 x 16, conv 34 x 5, dt/A/D 6, norms 32 + 16, out 32 x 16.
    block = 68 * 16 + 34 * 5 + 6 + 32 + 16 + 32 * 16
    assert flops.head_parameter_count(mamba, config) == 3 * block + 34
    one = flops.total(flops.block_terms(config, 10, d_state=1, blocks=1))
    assert flops.total(flops.head_terms(mamba, config, 10)) == 3 * one + 66


def test_mni_mask_is_the_template() -> None:
    """At 96^3 the 2 mm template itself, moved; 36 % of the spatial tokens; centred."""
    mask, voxel = flops.mni_mask((96, 96, 96))
    assert voxel == pytest.approx(2.0) and mask.sum() == 235_375
    tokens = flops.kept_tokens(np.flatnonzero(mask), ModelConfig())
    assert 0.355 < tokens / 40_960 < 0.370
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        assert abs(inside[0] - (95 - inside[-1])) <= 1
    coarse, size = flops.mni_mask((30, 36, 30))
    assert 5.0 < size < 6.0 and coarse.mean() == pytest.approx(mask.mean(), rel=0.3)


def test_kept_tokens_counts_patches_once() -> None:
    config = small_config()  # 2 x 2 x 2 patches, 2 in time
    first_patch = [0, 1, 12, 5 * 144]  # four voxels of patch (0, 0, 0)
    other = [11 * 144 + 11 * 12 + 11]  # patch (1, 1, 1)
    assert flops.kept_tokens(np.array(first_patch), config) == 2
    assert flops.kept_tokens(np.array(first_patch + other), config) == 4
    assert flops.kept_tokens(np.array(other), small_config(keep_background=True)) == 16


def test_readme_command_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "f.json"), "--output", str(tmp_path / "t.txt")]
    check_flops.run([*README_COMMAND, *files])
    result = json.loads((tmp_path / "f.json").read_text())
    assert result.keys() >= CONTRACT
    assert result["parameters"] == 5_387_512 and result["tokens_all"] == 40_960
    assert "MNI152" in result["tokens_source"] and "/path/to/hcp_hdf5" in result["tokens_source"]
    assert 63 < result["saving_percent"] < 65
    assert result["windows_per_epoch"] == 867 * 60  # 80 % of 1,084 subjects, 1,200 frames
    assert "assumption" in result["windows_source"]
    epoch = result["windows_per_epoch"] * result["training_flops_per_window_brain"]
    assert result["flops_per_epoch"] == epoch
    for part in ("all", "brain"):
        products = result[f"products_flops_per_window_{part}"]
        assert result[f"profiler_flops_per_window_{part}"] == products
    assert (
        result["backends"]["cpu"] == result["backends"]["reference"] == result["backends_formula"]
    )
    assert result["backends"].keys() == {"cpu", "reference", "triton"}
    assert result["deepspeed"] is None
    printed = capsys.readouterr().out
    assert "published" in printed and printed == (tmp_path / "t.txt").read_text()


def store(folder: Path, subjects: int = 10) -> Path:
    """Runs of 9 frames on a 12^3 grid; even subjects fill one spatial patch, odd ones three."""
    (folder / "hdf5").mkdir()
    corners = [0, 6, 6 * 12]  # patches (0, 0, 0), (0, 0, 1), (0, 1, 0)
    for number in range(subjects):
        vox = np.array(corners[: 1 + 2 * (number % 2)])
        subject = f"sub-{number:02d}"
        frames = np.random.RandomState(number).uniform(1, 2, (9, len(vox))).astype(np.float32)
        write_run(
            folder / "hdf5" / run_file_name(subject),
            frames,
            vox,
            grid=(12, 12, 12),
            affine=np.diag([-2.0, 2.0, 2.0, 1.0]),
            source=RunSource(subject=subject, tr=2.0),
        )
    return folder


def test_store_gives_tokens_and_windows(tmp_path: Path) -> None:
    """Mean of 2 and 6 tokens; 8 training subjects with two whole windows each."""
    path = store(tmp_path)
    flags = [*SMALL, "--dataset_name", "Dummy", "--image_path", str(path), "--batch_size", "3"]
    result = check_flops.run(flags)
    assert result["tokens_all"] == 16 and result["tokens_brain"] == 4.0
    assert "10 runs" in result["tokens_source"]
    assert result["windows_per_epoch"] == 16 and result["batches_per_epoch"] == 6
    assert not (path / "splits").exists()  # counting leaves nothing behind in the data
    config = ModelConfig(embed_dim=16, depth=1, img_size=(12, 12, 12, 4))
    assert result["flops_per_window_brain"] == flops.total(flops.forward_terms(config, 4))

    strided = check_flops.run([*flags, "--stride_between_seq", "0.5"])
    assert strided["windows_per_epoch"] == 8 * 3
    everything = check_flops.run([*flags, "--keep_background"])
    assert everything["tokens_brain"] == 16.0 and everything["saving_percent"] == 0.0
    with pytest.raises(UserInputError, match="--img_size"):
        check_flops.run([*flags[:4], "--img_size", "24", "12", "12", "4", *flags[9:]])


def test_flags_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    plain = check_flops.run([*SMALL, "--dataset_name", "ABIDE"])
    assert plain["windows_per_epoch"] is None and plain["flops_per_epoch"] is None
    assert "--windows_per_epoch" in capsys.readouterr().out
    other = check_flops.run(
        [*SMALL, "--windows_per_epoch", "7", "--batch_size", "2", "--clf_head_version", "mamba"]
    )
    assert other["flops_per_epoch"] == 7 * other["training_flops_per_window_brain"]
    assert other["batches_per_epoch"] == 4
    assert other["training_flops_per_batch_brain"] == 2 * plain["training_flops_per_window_brain"]
    assert other["head_parameters"] > plain["head_parameters"]
    pretraining = check_flops.run([*SMALL, "--pretraining", "--use_autoregressive"])
    assert "head_parameters" not in pretraining


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--windows_per_epoch", "0"], "--windows_per_epoch"),
        (["--json", "/no/such/folder/f.json"], "--json"),
        (["--embed_dims", "8"], "Did you mean '--embed_dim'"),
        (["--img_size", "13", "12", "12", "4"], "--img_size"),
        (
            ["--profiler", "deepsped"],
            "--profiler: unknown name 'deepsped'. Did you mean 'deepspeed'",
        ),
    ],
)
def test_user_errors(flags: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        check_flops.run([*SMALL, *flags])


def test_script_runs_from_anywhere(tmp_path: Path) -> None:
    """No PYTHONPATH, another working directory; a mistake is one line and status 2."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [preloaded_python(), str(ROOT / "project" / "check_flops.py")]
    done = subprocess.run(
        [*command, *SMALL, "--img_size", "13", "12", "12", "4"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --img_size") and done.stderr.count("\n") == 1


def test_tokens_for_share() -> None:
    """The nearest cost: half of it takes half of the tokens, as there are whole chunks only."""
    config = ModelConfig()
    assert flops.tokens_for_share(config, 0.5) == 20_480
    for share in (0.1, 0.5345, 0.9):
        tokens = flops.tokens_for_share(config, share)
        whole = flops.total(flops.forward_terms(config, config.num_tokens))

        def gap(n: int, wanted: float = share * whole) -> float:
            return abs(flops.total(flops.forward_terms(config, n)) - wanted)

        assert gap(tokens) <= min(gap(tokens - 1), gap(tokens + 1))


# ------------------------------------------------------------------------- DeepSpeed's profiler

NO_DEEPSPEED = "deepspeed is not installed (NEUROMAMBA_DEEPSPEED=1 bash setup_env.sh)"


@pytest.mark.skipif(installed("deepspeed"), reason="deepspeed is installed")
def test_deepspeed_absent() -> None:
    with pytest.raises(UserInputError, match=r"NEUROMAMBA_DEEPSPEED=1 bash setup_env\.sh"):
        check_flops.run([*SMALL, "--profiler", "deepspeed"])


@pytest.mark.skipif(not installed("deepspeed"), reason=NO_DEEPSPEED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DeepSpeed's own, on import
def test_deepspeed_differs_where_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Linear layers agree; convolution + 1/8 (its bias); einsum to four digits; nothing else."""
    before = torch.bmm, torch.nn.functional.linear, torch.einsum
    result = check_flops.run([*SMALL, "--profiler", "deepspeed"])
    assert (torch.bmm, torch.nn.functional.linear, torch.einsum) == before  # put back
    lines = {line["name"]: Comparison(**line) for line in result["deepspeed"]}
    assert sum(line.formula for line in lines.values()) == result["flops_per_window_all"]
    for name in ("embedding", "block: in_proj", "block: out_proj", "output layer"):
        line = lines.pop(name)
        assert line.formula == line.as_kernel == line.in_torch and not line.why
    assert all(line.as_kernel == 0 for line in lines.values())
    convolution = lines.pop("block: convolution")
    assert 8 * convolution.in_torch == 9 * convolution.formula and "bias" in convolution.why
    for name in [name for name in lines if name.startswith("block: scan, ")]:
        line = lines.pop(name)
        if line.in_torch:
            assert line.in_torch == pytest.approx(line.formula, rel=5e-4)
    silu = lines.pop("block: SiLU, softplus, gate, residual")
    assert 0 < silu.in_torch < silu.formula
    assert all(line.in_torch == 0 and line.why for line in lines.values())
    assert "DeepSpeed's flops profiler" in capsys.readouterr().out


def test_deepspeed_lines_add_up() -> None:
    lines = [
        Comparison("block: in_proj", 8_000_000_000, 8_000_000_000, 8_000_000_000, ""),
        Comparison("block: convolution", 2_000_000_000, 0, 2_250_000_000, "the bias"),
    ]
    text = flop_report._deepspeed_lines(lines)
    assert any(re.search(r"in_proj +8.000 +8.000 +8.000  same$", line) for line in text)
    assert any(line.endswith("+0.250 (+12.50%): the bias") for line in text)
    assert any(re.search(r"  sum +10.000 +8.000 +10.250  \+0.250 \(\+2.50%\)$", t) for t in text)
    assert "-2.000 GFLOPs (-20.0%)" in text[-1] and "in_proj (+0.000)" in text[-1]


# ------------------------------------------------------------------------------ the paper's table


@pytest.fixture(scope="module")
def flops_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flops_table", ROOT / "paper/flops_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_files_of_the_paper_are_up_to_date(flops_table: ModuleType) -> None:
    """`python paper/flops_table.py` writes what is committed."""
    result = flops_table.figures()
    assert flops_table.markdown(result) == (ROOT / "paper/flops.md").read_text(encoding="utf-8")
    stored = json.loads((ROOT / "paper/flops.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(result)) == stored
    assert (ROOT / "paper/flops.png").stat().st_size > 10_000


def test_rows_of_the_paper_by_other_means() -> None:
    """Published figures, masks and FLOPs of ``flops.json`` against what does not come from it."""
    stored = json.loads((ROOT / "paper/flops.json").read_text(encoding="utf-8"))
    assert stored["published_share"] == 3.72e17 / 6.96e17
    masks = {mask["name"]: mask for mask in stored["masks"]}
    assert masks["none"]["tokens"] == 16**3 * 10
    # Small with all tokens, per token: the linear layers, then the scan of whole chunks of 64.
    d, n = 128, 32
    linear = 2 * 432 * d * 2 + 12 * 2 * (d * (4 * d + 2 * n + 2) + 2 * d * d)
    scan = 12 * 2 * (64 * n + 2 * 64 * d + 2 * 2 * n * d)
    small = masks["none"]["sizes"]["Small"]
    assert 40_960 * (linear + scan) == pytest.approx(small["forward"], rel=0.03)
    assert small["forward"] > 40_960 * (linear + scan)  # norms, convolution, pointwise
    shares = [masks[name]["share"] for name in ("MNI152", "MNI152 + 1 voxel", "MNI152 + 2 voxels")]
    assert shares == sorted(shares)
    assert masks["MNI152"]["share"] < masks["union of 3, shifts to 1"]["share"]
    for name in ("MNI152", "union of 3, shifts to 4", "box"):
        saved = masks[name]["sizes"]["Medium"]["saving_percent"] / 100
        assert saved == pytest.approx(1 - masks[name]["share"], abs=0.002)


def test_shifted_and_grown(flops_table: ModuleType) -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[0, 2, 2] = True
    assert np.argwhere(flops_table.shifted(mask, (2, -1, 0))).tolist() == [[2, 1, 2]]
    assert not flops_table.shifted(mask, (-1, 0, 0)).any()  # left the grid
    assert flops_table.grown(mask, 1).sum() == 1 + 5  # a neighbour on each side inside the grid


def test_paper_table_command(
    flops_table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flops_table.main(["--folder", str(tmp_path), "--windows_per_epoch", "10"])
    assert {file.name for file in tmp_path.iterdir()} == {"flops.md", "flops.json", "flops.png"}
    assert "10 windows (--windows_per_epoch)" in (tmp_path / "flops.md").read_text()
    assert str(tmp_path) in capsys.readouterr().out
    with pytest.raises(UserInputError, match="--windows_per_epoch"):
        flops_table.main(["--windows_per_epoch", "0"])
    with pytest.raises(UserInputError, match="--folder"):
        flops_table.main(["--folder", str(tmp_path / "none")])
