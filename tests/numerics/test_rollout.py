"""Rollouts against a pass over all tokens before each one, and against the parallel pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.training import PretrainConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.losses import target_pairs
from neuromamba.fmamba.rollout import FrameGenerator, FrameTokens
from neuromamba.fmamba.tokenizer import PackedTokens, pack_anatomy, pack_compact, plan_compact
from tests.helpers.paths import ROOT

GRID = (6, 9, 6)
TIMES, FRAMES_OF_TOKEN = 5, 2
BACKGROUND = -1.5
MODES = {
    "raster": ("raster", {}),
    "raster, same place": ("raster", {"predict": "same_place"}),
    "raster, 2 ahead, difference": (
        "raster",
        {"predict": "same_place", "predict_ahead": 2, "loss_on": "difference"},
    ),
    "space first": ("space_first", {}),
    "space first, same place": ("space_first", {"predict": "same_place"}),
    "space first, 2 ahead, difference": (
        "space_first",
        {"predict": "same_place", "predict_ahead": 2, "loss_on": "difference"},
    ),
}
each_mode = pytest.mark.parametrize("mode", MODES)


def voxels() -> Tensor:
    """A mask that leaves places out, and voxels inside of kept places."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(GRID, generator=generator) > 0.4
    inside[:3, 3:6] = False
    return inside.flatten().nonzero()[:, 0].int()


def backbone(order: str, **changes: Any) -> FMamba:
    torch.manual_seed(1)
    values: dict[str, Any] = {
        "img_size": (*GRID, TIMES * FRAMES_OF_TOKEN),
        "patch_size": (3, 3, 3, FRAMES_OF_TOKEN),
        "embed_dim": 16,
        "depth": 2,
        "token_order": order,
    }
    model = FMamba(ModelConfig(**values | changes))
    assert model.output_layer is not None
    torch.nn.init.normal_(model.output_layer.bias)
    return model.eval()


def frames(count: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(voxels()), generator=generator)


def image() -> Tensor:
    return torch.randn(len(voxels()), generator=torch.Generator().manual_seed(8))


def generator_of(mode: str, **changes: Any) -> tuple[FrameGenerator, FMamba, PretrainConfig]:
    order, objective = MODES[mode]
    model, aim = backbone(order, **changes), PretrainConfig(**objective)
    anatomy = image() if model.config.anatomy else None
    made = FrameGenerator(model, aim, voxels(), BACKGROUND, anatomy=anatomy)
    return made, model, aim


def packed_window(model: FMamba, window: Tensor) -> PackedTokens:
    """The window as training packs it; the mean image in steps of 1."""
    plans = plan_compact([voxels()], model.config)
    packed = pack_compact([window], plans, [1.0], [0.0], [BACKGROUND], model.config)
    if not model.config.anatomy:
        return packed
    return packed._replace(anatomy=pack_anatomy([image()], plans, 1.0, model.config))


@pytest.mark.parametrize("order", ["raster", "space_first"])
@pytest.mark.parametrize("keep_background", [False, True])
def test_tokens_are_those_of_training(order: str, keep_background: bool) -> None:
    model = backbone(order, keep_background=keep_background, background="zero", anatomy=True)
    window = frames(TIMES * FRAMES_OF_TOKEN)
    packed = packed_window(model, window)
    grid = FrameTokens(voxels(), model.config, BACKGROUND, torch.device("cpu"))
    by_time = [grid.tokens(part) for part in window.split(FRAMES_OF_TOKEN)]
    made = torch.stack(by_time, dim=1 if order == "raster" else 0).flatten(0, 1)
    torch.testing.assert_close(made, packed.tokens, rtol=0, atol=0)
    torch.testing.assert_close(grid.at_places(image()), packed.anatomy, rtol=0, atol=0)
    back = torch.cat([grid.frames(tokens) for tokens in by_time])
    torch.testing.assert_close(back, window, rtol=0, atol=0)
    noise = torch.randn_like(by_time[0])
    cleaned = grid.with_background(noise, slice(None))
    torch.testing.assert_close(grid.frames(cleaned), grid.frames(noise), rtol=0, atol=0)
    torch.testing.assert_close(cleaned, grid.tokens(grid.frames(noise)), rtol=0, atol=0)


@each_mode
@pytest.mark.parametrize("anatomy", [False, True])
def test_teacher_forced_rollout_equals_the_parallel_pass(mode: str, anatomy: bool) -> None:
    made, model, objective = generator_of(mode, anatomy=anatomy)
    window = frames(TIMES * FRAMES_OF_TOKEN)
    times = [made.grid.tokens(part) for part in window.split(FRAMES_OF_TOKEN)]
    found = made.fill_window(times[:2], TIMES - 2, forced=times[2:])
    packed = packed_window(model, window)
    with torch.no_grad():
        output = model.forward_tokens(packed).prediction
    assert output is not None
    sources, targets = target_pairs(objective, packed, model.config)
    expected = torch.full((len(made.grid.places), TIMES, model.config.token_dim), torch.nan)
    value = output[sources]
    if objective.loss_on == "difference":
        value = value + packed.tokens[sources]
    row = {int(place): number for number, place in enumerate(made.grid.places)}
    for prediction, index in zip(value, packed.token_index[targets].tolist(), strict=True):
        expected[row[index // TIMES], index % TIMES] = prediction
    for time, tokens in enumerate(found, start=2):
        wanted = made.grid.with_background(expected[:, time], slice(None))
        torch.testing.assert_close(tokens, wanted, rtol=1e-5, atol=1e-5)


def rollout_by_recomputation(
    model: FMamba, objective: PretrainConfig, grid: FrameTokens, known: list[Tensor]
) -> Tensor:
    """[S, T, V]: each token from a pass over all tokens before it. Slow and obvious."""
    places = len(grid.places)
    values = torch.full((places, TIMES, model.config.token_dim), torch.nan)
    values[:, : len(known)] = torch.stack(known, dim=1)
    sequence = [(p, t) for p in range(places) for t in range(TIMES)]
    if model.config.token_order == "space_first":
        sequence.sort(key=lambda at: at[::-1])
    anatomy = grid.at_places(image()) if model.config.anatomy else None
    for number, (place, time) in enumerate(sequence):
        if time < len(known):
            continue
        source = sequence[number - 1]
        if objective.predict == "same_place":
            source = (place, time - objective.predict_ahead)
        seen = sequence[: sequence.index(source) + 1]
        tokens = torch.stack([values[at] for at in seen])
        index = torch.tensor([int(grid.places[p]) * TIMES + t for p, t in seen])
        own = None if anatomy is None else anatomy[[p for p, _ in seen]]
        x = model.embedder.of_rows(tokens, index, own)
        for block in model.mamba_layers:
            x = block(x, (len(seen),))
        prediction = model.predict(x[-1:])
        if objective.loss_on == "difference":
            prediction = prediction + values[source]
        values[place, time] = grid.with_background(prediction, slice(place, place + 1))[0]
    return values


@each_mode
@pytest.mark.parametrize("anatomy", [False, True])
def test_rollout_equals_recomputation(mode: str, anatomy: bool) -> None:
    made, model, objective = generator_of(mode, anatomy=anatomy)
    prompt = frames(4)
    found = torch.cat(list(made.rollout(prompt, 6)))
    known = [made.grid.tokens(part) for part in prompt.split(FRAMES_OF_TOKEN)]
    with torch.no_grad():
        expected = rollout_by_recomputation(model, objective, made.grid, known)
    for time in range(3):
        wanted = made.grid.frames(expected[:, 2 + time])
        one = found[2 * time : 2 * time + 2]
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)


@each_mode
def test_a_longer_rollout_continues_from_the_last_frames_before(mode: str) -> None:
    """Windows of 5 times with a prompt of 2, so of 3 new times; the first prompt has 3."""
    made, _, _ = generator_of(mode)
    prompt = frames(6)
    long = torch.cat(list(made.rollout(prompt, 13)))
    assert long.shape == (13, len(voxels()))
    assert made.plan.carried_times == 2
    assert [made.plan.windows_for(6, n) for n in (1, 4, 5, 10, 11)] == [1, 1, 2, 2, 3]
    for count in (1, 4, 5):  # the first frames do not depend on how many are asked for
        short = torch.cat(list(made.rollout(prompt, count)))
        torch.testing.assert_close(short, long[:count], rtol=1e-6, atol=1e-6)
    second = torch.cat(list(made.rollout(long[:4], 6)))
    torch.testing.assert_close(second, long[4:10], rtol=1e-6, atol=1e-6)
    other = torch.cat(list(made.rollout(frames(6, seed=9), 4)))
    assert (other - long[:4]).abs().max() > 1e-2


def test_carried_part_of_a_window_allows_the_prediction_far_ahead() -> None:
    objective = PretrainConfig(predict="same_place", predict_ahead=4)
    made = FrameGenerator(backbone("raster"), objective, voxels(), BACKGROUND)
    assert made.plan.carried_times == 4 and made.plan.default_prompt() == 8
    assert torch.cat(list(made.rollout(frames(8), 5))).isfinite().all()


def test_refusals() -> None:
    model = backbone("raster")
    plain = PretrainConfig()
    bare = FMamba(model.config, output_layer=False).eval()
    for refused, objective, message in (
        (bare, plain, "no next-token layer.*--use_autoregressive"),
        (
            model,
            PretrainConfig(objective="mim", masking_type="tube"),
            r"masked tokens \(tube, 0.75",
        ),
        (backbone("raster", img_size=(*GRID, 2)), plain, "--sequence_length"),
    ):
        with pytest.raises(UserInputError, match=message):
            FrameGenerator(refused, objective, voxels(), BACKGROUND)
    made = FrameGenerator(model, plain, voxels(), BACKGROUND)
    for wrong in (0, 1, 3, 9, 10, 12):
        with pytest.raises(
            UserInputError, match=f"--prompt: got {wrong} .* multiple of 2 from 2 to 8"
        ):
            next(made.rollout(frames(wrong), 2))
    far = FrameGenerator(
        model, PretrainConfig(predict="same_place", predict_ahead=3), voxels(), BACKGROUND
    )
    with pytest.raises(UserInputError, match=r"from 6 to 8 .* 3 tokens ahead"):
        far.plan.check_prompt(4)
    with pytest.raises(ValueError, match="needs anatomy"):
        FrameGenerator(backbone("raster", anatomy=True), plain, voxels(), BACKGROUND)


_LONG = """
import json, resource
import torch
from neuromamba.config.model import ModelConfig
from neuromamba.config.training import PretrainConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.rollout import FrameGenerator

torch.manual_seed(0)
torch.set_num_threads(1)
peaks, alive = {}, []  # what the first leaves behind must not be room for the second
for order in ("raster", "space_first"):
    config = ModelConfig(img_size=(12, 12, 12, 20), patch_size=(6, 6, 6, 2), embed_dim=16, depth=1,
                         token_order=order)
    made = FrameGenerator(FMamba(config).eval(), PretrainConfig(), torch.arange(12**3), 0.0)
    alive.append(made)
    count = 0
    for frames in made.rollout(torch.randn(10, 12**3), 400):
        count += len(frames)
        if count in (20, 400):
            peaks[f"{order} {count}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(peaks))
"""


def test_memory_is_flat_from_20_to_400_frames() -> None:
    """Of the process, in kB; 380 more frames of 1728 voxels would be 2.6 MB if they were kept."""
    done = subprocess.run(
        [sys.executable, "-c", _LONG],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "project"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        cwd=Path("/"),
    )
    peaks = json.loads(done.stdout)
    assert len(peaks) == 4
    for order in ("raster", "space_first"):
        assert peaks[f"{order} 400"] - peaks[f"{order} 20"] < 1024, peaks
