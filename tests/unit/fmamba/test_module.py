"""The LightningModules on hand-made batches: losses by hand, gradients, metrics, precision."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import stream
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.data.windows.dataset import collate_windows
from neuromamba.evaluation.subject_keys import subject_key
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.masking import hidden_tokens
from neuromamba.fmamba.optimizer import build_optimizer
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.fmamba.tokenizer import PackedTokens, in_raster_order, pack_dense

# What Lightning remarks on; ``training.trainer`` leaves the same out of real runs.
lightning_remarks = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*treespec, LeafSpec.* is deprecated",
    "ignore:.*in eval mode at the start of training",
    "ignore:.*You have overridden .on_before_batch_transfer.",
)

SIZE, PATCH, EMBED = (6, 6, 6, 8), (3, 3, 3, 2), 16
VOXELS, TIMES, VALUES = 216, 4, 54
STEPS = OptimConfig(learning_rate=3e-3, use_scheduler=False)


def model_config(**more: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "img_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": EMBED,
        "depth": 2,
    }
    return ModelConfig(**values | more)


def sample(seed: int, vox: Sequence[int], target: float | None = None) -> dict[str, Any]:
    """A window whose voxels follow slow waves: predictable, and different for every seed."""
    rng = np.random.default_rng(seed)
    frames = np.arange(SIZE[3])[:, None]
    wave = np.sin(0.7 * frames + rng.uniform(0, 6, len(vox))) + 0.2 * rng.normal(
        size=(SIZE[3], len(vox))
    )
    # z = bold / 400 + 0.3; a class shifts the first voxels.
    if target is not None:
        wave[:, :20] += target
    made = {
        "bold": torch.from_numpy((wave * 400).astype(np.int16)),
        "vox": torch.tensor(sorted(vox), dtype=torch.int32),
        "gain": 1 / 400,
        "shift": 0.3,
        "background": -7.0,
        "subject": f"sub-{seed}",
        "sample_id": f"sub-{seed}",
        "window": seed % 3,
        "dataset": 0,
    }
    return made if target is None else made | {"target": target}


# The first spatial patch only, the second half of the grid, every voxel but a few.
BRAINS: tuple[Sequence[int], ...] = (
    [(x * 6 + y) * 6 + z for x in range(3) for y in range(3) for z in range(3)],
    range(108, 216),
    range(210),
)
LENGTHS = (1 * TIMES, 4 * TIMES, 8 * TIMES)


def samples(targets: Sequence[float] | None = None) -> list[dict[str, Any]]:
    return [sample(i, vox, None if targets is None else targets[i]) for i, vox in enumerate(BRAINS)]


def batch_of(module: LightningModule, made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch as it reaches ``training_step``."""
    return module.on_before_batch_transfer(collate_windows(made), 0)


def dense(made: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """The same windows (B, 1, X, Y, Z, T) with their masks, by plain indexing."""
    fmri = torch.zeros(len(made), VOXELS, SIZE[3])
    mask = torch.zeros(len(made), VOXELS, dtype=torch.bool)
    for i, one in enumerate(made):
        fmri[i] = one["background"]
        places = one["vox"].long()
        fmri[i, places] = (one["bold"].float() * one["gain"] + one["shift"]).T
        mask[i, places] = True
    return fmri.reshape(len(made), 1, *SIZE), mask.reshape(len(made), *SIZE[:3])


def pretrain(
    objective: str = "autoregressive", seed: int = 0, predict: str | None = None, **model: Any
) -> PretrainModule:
    torch.manual_seed(seed)
    config = PretrainConfig(objective=objective, mask_ratio=0.5)
    if predict is not None:
        config = PretrainConfig(predict=predict)
    return PretrainModule(
        model=model_config(**model), objective=config, optim=STEPS, total_steps=100, seed=11
    )


def downstream(
    head: str = "linear",
    task: str = "sex",
    frozen: bool = False,
    scaling: TargetScaling | None = None,
    head_dropout: float = 0.0,
    smoothing: float = 0.1,
    **model: Any,
) -> DownstreamModule:
    torch.manual_seed(0)
    config = DownstreamConfig(task=task, freeze_feature_extractor=frozen, label_smoothing=smoothing)
    return DownstreamModule(
        model=model_config(**model),
        head=HeadConfig(
            name=head, out_features=config.out_features, dropout=head_dropout, mamba_depth=2
        ),
        task=config,
        optim=STEPS,
        total_steps=100,
        target_scaling=scaling or TargetScaling(0.0, 1.0),
    )


def train(module: Any, made: Sequence[dict[str, Any]], steps: int) -> list[float]:
    optimizer, batch, losses = module.configure_optimizers(), batch_of(module, made), []
    for step in range(steps):
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def quiet_trainer(*callbacks: Callback, epochs: int = 1) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )


def loader(made: Sequence[dict[str, Any]], size: int) -> DataLoader[Any]:
    return DataLoader(list(made), batch_size=size, collate_fn=collate_windows)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- batches


def test_batch_is_planned_before_it_travels() -> None:
    module = pretrain()
    made = samples()
    batch = batch_of(module, made)
    assert "vox" not in batch and len(batch["plans"]) == 3
    assert batch["subject_key"].tolist() == [subject_key(f"sub-{i}") for i in range(3)]
    second = [one | {"dataset": 1} for one in made]
    assert batch_of(module, second)["subject_key"].tolist() == [
        subject_key(f"sub-{i}", 1) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("flags", "lengths"),
    [
        ({}, LENGTHS),
        ({"keep_background": True}, (8 * TIMES,) * 3),
        ({"union_mask": True}, (8 * TIMES,) * 3),
    ],
)
def test_background_decides_the_number_of_tokens(
    flags: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    module = pretrain(**flags)
    packed = module.pack(batch_of(module, samples()))
    assert packed.lengths == lengths and packed.tokens.shape == (sum(lengths), VALUES)
    fmri, mask = dense(samples())
    expected = pack_dense(fmri, module.model.config, mask)
    assert torch.equal(packed.token_index, expected.token_index)
    torch.testing.assert_close(packed.tokens, expected.tokens)


# ----------------------------------------------------------------------------- pre-training


@pytest.mark.parametrize("objective", ["autoregressive", "mim"])
def test_a_few_steps_reduce_the_pretraining_loss(objective: str) -> None:
    losses = train(pretrain(objective), samples(), 25)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_next_token_loss_by_loops() -> None:
    """From the dense window, pair by pair; every token weighs alike, whatever its sample."""
    module = pretrain()
    made = samples()
    loss = module.training_step(batch_of(module, made), 0).item()
    fmri, mask = dense(made)
    total, count = 0.0, 0
    for i in range(3):
        output = module.model(fmri[i : i + 1], mask[i : i + 1])
        assert len(output.tokens) == LENGTHS[i]
        for t in range(LENGTHS[i] - 1):
            error = (output.prediction[t] - output.tokens[t + 1]).double()
            total, count = total + error.square().mean().item(), count + 1
    assert count == sum(LENGTHS) - 3
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_masked_loss_by_loops() -> None:
    """Hidden tokens enter as 0 and are compared at their own place; the masks are the epoch's."""
    module = pretrain("mim")
    batch = batch_of(module, samples())
    loss = module.training_step(batch, 5).item()
    packed = module.pack(batch)
    streams = [
        stream(11, 0, 0, subject_key(f"sub-{number}"), number % 3) for number in range(len(LENGTHS))
    ]
    hidden = hidden_tokens(packed.token_index, packed.lengths, TIMES, 0.5, "random", streams)
    seen = packed.tokens.clone()
    seen[hidden] = 0.0
    prediction = module.model.forward_tokens(packed._replace(tokens=seen)).prediction
    assert prediction is not None
    errors = [
        (prediction[i] - packed.tokens[i]).double().square().mean().item()
        for i in range(len(hidden))
        if hidden[i]
    ]
    assert loss == pytest.approx(np.mean(errors), rel=1e-5)


def test_masks_change_from_epoch_to_epoch_but_not_in_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = pretrain("mim")
    training, validation = [], []
    for epoch in (0, 1, 0):
        monkeypatch.setattr(PretrainModule, "current_epoch", epoch)
        training.append(batch_of(module.train(), samples())["hidden"].tolist())
        validation.append(batch_of(module.eval(), samples())["hidden"].tolist())
    assert training[0] == training[2] != training[1]
    assert validation[0] == validation[1] != training[0]


@pytest.mark.parametrize("training", [True, False])
def test_a_mask_does_not_depend_on_the_batch(training: bool) -> None:
    """So that the number of ranks and the batch size change nothing."""
    module = pretrain("mim").train(training)
    together = batch_of(module, samples())["hidden"].split(LENGTHS)
    for one, expected in zip(samples(), together, strict=True):
        assert torch.equal(batch_of(module, [one])["hidden"], expected)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("autoregressive", {}),
        ("mim", {}),
        ("autoregressive", {"predict": "same_place", "token_order": "space_first"}),
    ],
)
def test_padding_counts_for_nothing(objective: str, more: dict[str, Any]) -> None:
    module, made = pretrain(objective, **more), samples()
    padded = batch_of(module, made) | {"is_padding": (False, True, False)}
    alone = batch_of(module, [made[0], made[2]])
    losses = [module.training_step(batch, 0) for batch in (padded, alone)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, module.model.embedder.projection)[0] for loss in losses]
    torch.testing.assert_close(*gradients)
    module.eval()
    values = []
    for batch in (padded, alone):
        module.validation.reset()
        module.validation_step(batch, 0)
        values.append(module.validation.compute())
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("task", ["sex", "age"])
def test_padding_counts_for_nothing_downstream(task: str) -> None:
    module = downstream(task=task)
    made = samples([0, 1, 1] if task == "sex" else [30.0, 40.0, 50.0])
    padded = batch_of(module, made) | {"is_padding": (False, True, False)}
    alone = batch_of(module, [made[0], made[2]])
    torch.testing.assert_close(*(module.training_step(batch, 0) for batch in (padded, alone)))
    values = []
    for batch in (padded, alone):
        module.losses.reset()
        module.validation_step(batch, 0)
        values.append(module.losses.compute())
    torch.testing.assert_close(*values)


def test_masked_content_is_hidden_and_its_predecessor_is_seen() -> None:
    module = pretrain("mim").eval()
    batch = batch_of(module, samples())
    packed = module.pack(batch)
    hidden = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    start = LENGTHS[0]  # the second sample
    hidden[[start + 4, start + 5]] = True

    def prediction(change: int | None) -> Tensor:
        tokens = packed.tokens.clone()
        if change is not None:
            tokens[change] += 3.0
        output = module.model.forward_tokens(packed._replace(tokens=tokens), hidden)
        assert output.prediction is not None
        return output.prediction

    with torch.no_grad():
        before = prediction(None)
        for content in (start + 4, start + 5):
            assert torch.equal(prediction(content), before)
        predecessor = (prediction(start + 3) - before).abs().amax(1)
        assert predecessor[start + 4] > 1e-3 and predecessor[start + 5] > 1e-4
        # A later token, or one of another sample, does not help.
        for other in (start + 6, start - 1):
            assert torch.equal(prediction(other)[[start + 4, start + 5]], before[hidden])


def test_mim_tells_where_a_hidden_token_is() -> None:
    """A hidden token keeps its position: two of them are not predicted alike."""
    module = pretrain("mim").eval()
    packed = module.pack(batch_of(module, samples()))
    hidden = torch.ones(sum(LENGTHS), dtype=torch.bool)
    with torch.no_grad():
        output = module.model.forward_tokens(packed, hidden)
    assert output.prediction is not None
    assert torch.pdist(output.prediction[: LENGTHS[0]]).min() > 1e-3


@pytest.mark.parametrize("objective", ["autoregressive", "mim"])
@lightning_remarks
def test_pretraining_under_the_trainer(objective: str) -> None:
    """val/* are over all target tokens of the epoch, in batches of one or all at once."""
    module = pretrain(objective)
    made = samples()
    trainer = quiet_trainer()
    trainer.fit(module, loader(made, 2), loader(made, 1))
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    wanted = {"train/loss", "val/loss", "val/persistence_loss", "val/sequence_skill"}
    assert wanted | {"val/anatomy_share"} <= set(values)
    assert ("val/dynamic_skill" in values) == (objective == "autoregressive")
    assert values["val/sequence_skill"] == pytest.approx(
        1 - values["val/loss"] / values["val/persistence_loss"], rel=1e-5
    )
    if objective == "autoregressive":
        module.eval()
        with torch.no_grad():
            _, errors, _ = module.predict_tokens(batch_of(module, made))
        assert len(errors) == sum(LENGTHS) - 3
        expected = errors.mean().item()
        assert values["val/loss"] == pytest.approx(expected, rel=1e-5)
        steps = [
            (after - before).square().mean().item()
            for tokens in module.pack(batch_of(module, made)).tokens.split(LENGTHS)
            for before, after in itertools.pairwise(tokens)
        ]
        assert values["val/persistence_loss"] == pytest.approx(np.mean(steps), rel=1e-5)
        targets = sum(LENGTHS) - 3
        jumps = sum(LENGTHS) // TIMES - 3
        parts = (targets - jumps) * values["val/step_loss"] + jumps * values["val/jump_loss"]
        assert parts / targets == pytest.approx(expected, rel=1e-5)
        assert module.dynamic_skill == pytest.approx(values["val/dynamic_skill"], rel=1e-6)


@pytest.mark.parametrize("order", ["raster", "space_first"])
@pytest.mark.parametrize("loss_on", ["token", "difference"])
@lightning_remarks
def test_same_place_under_the_trainer(loss_on: str, order: str) -> None:
    """Loss and controls at the same place, by loops over tokens; and no jumps."""
    torch.manual_seed(0)
    objective = PretrainConfig(predict="same_place", loss_on=loss_on)
    model = model_config(token_order=order)
    module = PretrainModule(model=model, objective=objective, optim=STEPS, total_steps=100)
    made = samples()
    trainer = quiet_trainer()
    trainer.fit(module, loader(made, 2), loader(made, 1))
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    module.eval()
    packed = module.pack(batch_of(module, made))
    with torch.no_grad():
        guess = module.model.forward_tokens(packed).prediction
    assert guess is not None
    errors, copied, start = [], [], 0
    for length in packed.lengths:
        row_at = {packed.token_index[i].item(): i for i in range(start, start + length)}
        start += length
        for index, row in row_at.items():
            if index % TIMES:
                source = row_at[index - 1]
                predicted = guess[source]
                if loss_on == "difference":
                    predicted = predicted + packed.tokens[source]
                errors.append((predicted - packed.tokens[row]).square().mean().item())
                copied.append((packed.tokens[source] - packed.tokens[row]).square().mean().item())
    assert len(errors) == sum(LENGTHS) // TIMES * (TIMES - 1)
    for name in ("loss", "step_loss"):
        assert values[f"val/{name}"] == pytest.approx(np.mean(errors), rel=1e-5), name
    for name in ("persistence_loss", "step_persistence_loss"):
        assert values[f"val/{name}"] == pytest.approx(np.mean(copied), rel=1e-5), name
    assert "val/jump_loss" not in values
    assert module.dynamic_skill == pytest.approx(values["val/dynamic_skill"], rel=1e-6)


@pytest.mark.parametrize("objective", [PretrainConfig(), PretrainConfig(objective="mim")])
@lightning_remarks
def test_space_first_has_no_steps_in_the_sequence(objective: PretrainConfig) -> None:
    """The next token is of another place, so how the signal changes is not predicted."""
    model = model_config(token_order="space_first")
    module = PretrainModule(model=model, objective=objective, optim=STEPS, total_steps=100)
    trainer = quiet_trainer()
    trainer.fit(module, loader(samples(), 2), loader(samples(), 1))
    found = set(trainer.callback_metrics)
    assert {"val/loss", "val/anatomy_share", "val/sequence_skill"} <= found
    assert not {"val/skill", "val/dynamic_skill", "val/jump_loss"} & found
    assert module.dynamic_skill is None


def test_anatomy_share_is_of_the_data_whatever_the_order() -> None:
    shares = []
    for order in ("raster", "space_first"):
        module = PretrainModule(
            model=model_config(token_order=order),
            objective=PretrainConfig(),
            optim=STEPS,
            total_steps=100,
        )
        module.anatomy.update(module.pack(batch_of(module, samples())), (False,) * 3)
        shares.append(module.anatomy.compute()["anatomy_share"].item())
    assert shares[0] == pytest.approx(shares[1], rel=1e-9)


def test_features_depend_on_the_order_and_the_loss_on_the_pairs() -> None:
    """A causal model has seen other tokens before the same one, so its features differ."""
    made, outputs = samples(), []
    for order in ("raster", "space_first"):
        module = pretrain(token_order=order).eval()
        packed = module.pack(batch_of(module, made))
        features = module.model.forward_tokens(packed).features
        rows = in_raster_order(packed, module.model.config)
        outputs.append(features if rows is None else features[rows])
    assert outputs[0].shape == outputs[1].shape
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    torch.testing.assert_close(outputs[0][0], outputs[1][0])  # nothing is before the first token


def test_a_module_without_targets_is_refused() -> None:
    objective = PretrainConfig(predict="same_place", predict_ahead=TIMES)
    with pytest.raises(UserInputError, match="--predict_ahead"):
        PretrainModule(model=model_config(), objective=objective, optim=STEPS, total_steps=1)


# ------------------------------------------------------------------------------- downstream


@pytest.mark.parametrize("head", ["linear", "mamba"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("task", "targets"), [("sex", [0, 1, 0]), ("age", [-1.0, 1.0, 0.5])])
def test_a_few_steps_reduce_the_task_loss(
    head: str, frozen: bool, task: str, targets: list[float]
) -> None:
    losses = train(downstream(head, task, frozen), samples(targets), 25)
    assert losses[-1] < 0.9 * losses[0]


def test_classification_loss_by_hand() -> None:
    """Mean of a sample's features, an affine map, and cross entropy with smoothed targets."""
    module = downstream()
    made = samples([1, 0, 1])
    loss = module.training_step(batch_of(module, made), 0).item()
    fmri, mask = dense(made)
    weight = module.head.classifier.weight.double()  # type: ignore[union-attr]
    bias = module.head.classifier.bias.double()  # type: ignore[union-attr]
    total = 0.0
    for i, target in enumerate([1, 0, 1]):
        features = module.model(fmri[i : i + 1], mask[i : i + 1]).features.double()
        logits = (weight @ features.mean(0) + bias).tolist()
        normaliser = np.logaddexp(*logits)
        total -= 0.95 * (logits[target] - normaliser) + 0.05 * (logits[1 - target] - normaliser)
    assert loss == pytest.approx(total / 3, rel=1e-5)


def test_targets_of_a_regression_are_scaled_and_predictions_scaled_back() -> None:
    module = downstream(task="age", scaling=TargetScaling(40.0, 8.0))
    batch = batch_of(module, samples([32.0, 44.0, 56.0]))
    assert module.scaled_target(batch).tolist() == [-1.0, 0.5, 2.0]
    assert module.scores(torch.tensor([[-1.0], [0.5]])).tolist() == [[32.0], [44.0]]
    logits, _ = module(batch)
    loss = module.training_step(batch, 0).item()
    expected = np.mean(
        [(o - t) ** 2 for o, t in zip(logits[:, 0].tolist(), [-1, 0.5, 2], strict=True)]
    )
    assert loss == pytest.approx(expected, rel=1e-5)


def test_class_targets_are_not_scaled() -> None:
    module = downstream(scaling=TargetScaling(40.0, 8.0))
    batch = batch_of(module, samples([1, 0, 1]))
    assert module.scaled_target(batch).tolist() == [1, 0, 1]
    probabilities = module.scores(torch.tensor([[0.0, np.log(3.0)]]))
    assert probabilities.tolist()[0] == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("task", ["sex", "age"])
@lightning_remarks
def test_evaluation_averages_the_windows_of_a_subject(task: str) -> None:
    """Through the Trainer; metrics in the target's units, the loss in the units of training."""
    targets = [1, 1, 0] if task == "sex" else [30.0, 30.0, 50.0]
    made = samples(targets)
    made[1] |= {
        "subject": "sub-0",
        "sample_id": "sub-0",
        "window": 7,
    }  # a second window of the first subject
    module = downstream(task=task, scaling=TargetScaling(40.0, 8.0))
    trainer = quiet_trainer()
    trainer.test(module, loader(made, 2), verbose=False)
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    with torch.no_grad():
        logits, features = module.eval()(batch_of(module, made))
    assert {window.shape[1] for window in features} == {EMBED} and len(features) == 3
    if task == "sex":
        probability = torch.softmax(logits, 1)[:, 1].tolist()
        first, second = (probability[0] + probability[1]) / 2, probability[2]
        assert values["test/accuracy"] == ((first > 0.5) + (second < 0.5)) / 2
        assert values["test/auroc"] == (first > second)
    else:
        years = [o * 8 + 40 for o in logits[:, 0].tolist()]
        errors = [(years[0] + years[1]) / 2 - 30, years[2] - 50]
        assert values["test/mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
        assert values["test/mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)
        scaled = [
            (o - t) ** 2 for o, t in zip(logits[:, 0].tolist(), [-1.25, -1.25, 1.25], strict=True)
        ]
        assert values["test/loss"] == pytest.approx(np.mean(scaled), rel=1e-5)
    seen = module.seen["test"]
    assert seen is not None and len(seen.subject) == 3
    assert sorted(seen.window.tolist()) == [0, 2, 7]


def test_evaluation_loss_is_not_smoothed() -> None:
    """So that values of runs with other smoothing can be compared."""
    module = downstream(smoothing=0.4).eval()
    batch = batch_of(module, samples([1, 0, 1]))
    module.validation_step(batch, 0)
    logits, _ = module(batch)
    expected = torch.nn.functional.cross_entropy(logits, batch["target"])
    torch.testing.assert_close(module.losses.compute().float(), expected)


def test_flattened_parameters_are_decayed_as_before() -> None:
    """FSDP makes vectors of all parameters before the optimiser is built."""
    module = pretrain()
    expected = [len(group["params"]) for group in build_optimizer(module, STEPS).param_groups]
    module.setup("fit")
    for parameter in module.parameters():
        parameter.data = parameter.data.flatten()
    groups = build_optimizer(module, STEPS, module._matrices).param_groups
    assert [len(group["params"]) for group in groups] == expected
    assert sum(p.numel() for p in groups[0]["params"]) > sum(p.numel() for p in groups[1]["params"])


@pytest.mark.parametrize(("algorithm", "sharded"), [("norm", True), (None, True), ("value", False)])
def test_clipping_under_fsdp(
    monkeypatch: pytest.MonkeyPatch, algorithm: str | None, sharded: bool
) -> None:
    """The sharded model knows the norm over all ranks."""
    module, calls = pretrain(), []
    root = SimpleNamespace(clip_grad_norm_=lambda value: calls.append(("sharded", value)))
    module._trainer = SimpleNamespace(model=root)  # type: ignore[assignment]
    monkeypatch.setattr(
        PretrainModule, "clip_gradients", lambda *args: calls.append(("plain", args[2]))
    )
    module.configure_gradient_clipping(build_optimizer(module, STEPS), 0.5, algorithm)
    assert calls == [("sharded" if sharded else "plain", 0.5)]


# --------------------------------------------------------------------------- frozen backbone


@pytest.mark.parametrize("head", ["linear", "mamba"])
def test_frozen_backbone_gets_no_gradient(head: str) -> None:
    module = downstream(head, frozen=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, samples([0, 1, 0]), 3)
    assert all(p.grad is None for p in module.model.parameters())
    assert all(p.grad is not None for p in module.head.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("model."), name


def test_whole_model_is_trained_when_not_frozen() -> None:
    module = downstream()
    module.training_step(batch_of(module, samples([0, 1, 0])), 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def modes(module: DownstreamModule) -> tuple[set[bool], set[bool]]:
    return (
        {part.training for part in module.model.modules()},
        {part.training for part in module.head.modules()},
    )


def test_frozen_backbone_stays_in_evaluation_mode() -> None:
    module = downstream(frozen=True, dropout=0.5, head_dropout=0.5)
    assert modes(module) == ({False}, {True})  # from the start: Lightning keeps what it finds
    assert modes(module.train()) == ({False}, {True})
    assert modes(module.eval()) == ({False}, {False})
    assert modes(module.train()) == ({False}, {True})
    trained = downstream(dropout=0.5)
    assert modes(trained) == ({True}, {True})


@pytest.mark.parametrize("frozen", [False, True])
@lightning_remarks
def test_modes_under_the_trainer(frozen: bool) -> None:
    """In every training step, before the first validation and after it."""
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            seen.append(modes(pl_module))

    module = downstream(frozen=frozen, dropout=0.5)
    made = samples([0, 1, 0])
    quiet_trainer(Watch(), epochs=2).fit(module, loader(made, 2), loader(made, 3))
    assert seen == [({not frozen}, {True})] * 4


def test_frozen_features_do_not_vary_with_dropout() -> None:
    module = downstream(frozen=True, dropout=0.5)
    batch = batch_of(module, samples([0, 1, 0]))
    assert torch.equal(module(batch)[1][0], module(batch)[1][0])
    trained = downstream(dropout=0.5)
    assert not torch.equal(trained(batch)[1][0], trained(batch)[1][0])


@pytest.mark.parametrize("frozen", [False, True])
def test_no_graph_is_kept_where_none_is_needed(frozen: bool) -> None:
    """In evaluation, and below a frozen backbone's features: half the memory of a step."""
    module = downstream(frozen=frozen)
    batch, kept = batch_of(module, samples([0, 1, 0])), []
    module.model.norm.register_forward_hook(lambda *call: kept.append(call[2].requires_grad))
    module(batch)
    with torch.no_grad():
        module(batch)
    assert kept == [not frozen, False]


# ------------------------------------------------------------------------------------ heads


@pytest.mark.parametrize("head", ["linear", "mamba"])
def test_which_tokens_a_head_reads(head: str) -> None:
    """Linear: every token of the sample by the same share. Mamba: the last, and so all."""
    module = downstream(head)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(sum(LENGTHS), EMBED, generator=generator, requires_grad=True)
    packed = PackedTokens(torch.zeros(0), torch.zeros(sum(LENGTHS), dtype=torch.int64), LENGTHS)
    module.head(features, packed)[1].sum().backward()  # the second sample
    assert features.grad is not None
    reach = features.grad.abs().amax(1).split(LENGTHS)
    assert reach[0].max() == reach[2].max() == 0.0
    assert reach[1].min() > 0.0
    if head == "linear":
        torch.testing.assert_close(reach[1], reach[1][:1].expand_as(reach[1]))
    else:
        assert reach[1].argmax() == LENGTHS[1] - 1  # nearest to what is read


# -------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_weight_decay_spares_vectors(name: str) -> None:
    module = downstream("mamba")
    config = OptimConfig(optimizer=name, learning_rate=0.3, weight_decay=0.07, momentum=0.5)
    optimizer = build_optimizer(module, config)
    assert type(optimizer).__name__ == name
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    spared = ("bias", "norm.weight", "A_log", "D", "dt_bias", "0.weight", "2.weight")
    decayed = ("projection", "in_proj.weight", "out_proj.weight", "conv1d.weight")
    for key, parameter in module.named_parameters():
        if key.endswith((*decayed, "classifier.weight")):
            assert decay[id(parameter)] == 0.07, key
        else:
            assert key.endswith(spared) and decay[id(parameter)] == 0.0, key
    assert len(decay) == len(list(module.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
    if name == "SGD":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.5}


def test_decay_shrinks_matrices_only() -> None:
    """One step without any gradient: p * (1 - lr * decay), or p."""
    module = downstream()
    before = {name: value.clone() for name, value in module.named_parameters()}
    optimizer = build_optimizer(module, OptimConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in module.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.dim() > 1 else 1.0
        torch.testing.assert_close(value, before[name] * factor)


def test_frozen_parameters_are_not_given_to_the_optimiser() -> None:
    module = downstream(frozen=True)
    optimizer = build_optimizer(module, OptimConfig())
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in module.head.parameters()}


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_steps_equal_torchs_plain_ones(name: str) -> None:
    """The update in one pass against the one written operation by operation."""
    torch.manual_seed(0)
    module, plain = downstream(), downstream()
    config = OptimConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.1)
    ours = build_optimizer(module, config)
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    reference: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, lr=1e-2, foreach=False, fused=False)
        if name == "AdamW"
        else torch.optim.SGD(groups, lr=1e-2, momentum=0.9, foreach=False)
    )
    pairs = list(zip(module.parameters(), plain.parameters(), strict=True))
    for _ in range(5):
        for one, other in pairs:
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        reference.step()
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@lightning_remarks
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_clipping_in_every_precision(precision: Any) -> None:
    """Lightning would refuse to clip for an optimiser that undoes a loss scaling by itself."""
    norms = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients).item())

    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=2,
        gradient_clip_val=1e-3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )
    module = pretrain()
    trainer.fit(module, loader(samples(), 1), loader(samples(), 3))
    assert norms == pytest.approx([1e-3], rel=1e-3)
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert {p.dtype for p in module.parameters()} == {kind}, "A_log, dt_bias and norms too"


class ScalarReads(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: a value asked for, by ``item`` or ``if``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@lightning_remarks
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_training_step_reads_no_value(clip: float | None) -> None:
    """From the batch to its end, of a step that is not logged."""
    reads = ScalarReads()
    counts = []

    class Watch(Callback):
        def on_train_batch_start(self, *rest: Any) -> None:
            reads.count = 0
            reads.__enter__()

        def on_train_batch_end(self, *rest: Any) -> None:
            counts.append(reads.count)
            reads.__exit__(None, None, None)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )
    trainer.fit(pretrain(), loader(samples(), 1), loader(samples(), 3))
    assert counts == [0, 0, 0]
    with reads:
        torch.ones(1).item()
    assert reads.count == 1


# ------------------------------------------------------------------ activation checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointed_activations_change_nothing(dropout: float, precision: torch.dtype) -> None:
    """Loss and gradients, also where the blocks draw: the second pass draws the same."""

    def step(again: bool) -> tuple[Tensor, list[Tensor]]:
        module = pretrain(dropout=dropout)
        module.model.activation_checkpointing = again
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = module.training_step(batch_of(module, samples()), 0)
        loss.backward()
        gradients = [p.grad for p in module.parameters()]
        assert all(g is not None for g in gradients)
        return loss.detach(), [g for g in gradients if g is not None]

    (loss, gradients), (other_loss, others) = step(True), step(False)
    assert torch.equal(loss, other_loss)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_checkpointed_activations_keep_the_inputs_of_blocks_only(backend: str) -> None:
    """Counted where autograd stores them; the blocks' own are most of a step's memory."""

    def kept(again: bool) -> int:
        torch.manual_seed(0)
        model = build_model(model_config(depth=3, dropout=0.1), False, backend, again)
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        module = pretrain()
        packed = module.pack(batch_of(module, samples()))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.encode(packed)
        return sum(storages.values())

    inputs = 3 * sum(LENGTHS) * EMBED * 4
    tokens = sum(LENGTHS) * VALUES * 4
    assert kept(True) <= inputs + tokens < kept(False)


def test_frozen_features_are_not_checkpointed() -> None:
    """Without gradients there is nothing to compute again, and torch would warn."""
    module = downstream(frozen=True)
    for block in module.model.mamba_layers:
        block.checkpointing = True
    module.training_step(batch_of(module, samples([0, 1, 0])), 0).backward()
    assert all(p.grad is None for p in module.model.parameters())


# ------------------------------------------------------------------- independence, precision


@pytest.mark.parametrize("head", ["linear", "mamba"])
@pytest.mark.parametrize("keep_background", [False, True])
def test_logits_do_not_depend_on_batch_mates(head: str, keep_background: bool) -> None:
    module = downstream(head, keep_background=keep_background).eval()
    made = samples([0, 1, 0])
    with torch.no_grad():
        together = module(batch_of(module, made))
        for order in ([2, 0, 1], [1, 2]):
            reordered = module(batch_of(module, [made[i] for i in order]))
            torch.testing.assert_close(together[0][order], reordered[0], rtol=0, atol=1e-6)
            for i, other in zip(order, reordered[1], strict=True):
                torch.testing.assert_close(together[1][i], other, rtol=0, atol=1e-6)
        for i, one in enumerate(made):
            logits, features = module(batch_of(module, [one]))
            torch.testing.assert_close(logits[0], together[0][i], rtol=0, atol=1e-6)
            torch.testing.assert_close(features[0], together[1][i], rtol=0, atol=1e-6)
        assert together[0].std(0).max() > 1e-3  # the samples do differ


@pytest.mark.parametrize("objective", ["autoregressive", "mim"])
def test_bf16_pretraining_is_close_to_fp32(objective: str) -> None:
    module = pretrain(objective)
    batch = batch_of(module, samples())
    wide = module.training_step(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = module.training_step(batch, 0)
    assert narrow.dtype == torch.float32 and narrow.item() != wide.item()
    assert narrow.item() == pytest.approx(wide.item(), rel=0.02)
    narrow.backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert {g.dtype for g in gradients.values() if g is not None} == {torch.float32}


@pytest.mark.parametrize("head", ["linear", "mamba"])
def test_bf16_logits_are_close_to_fp32(head: str) -> None:
    module = downstream(head).eval()
    batch = batch_of(module, samples([0, 1, 0]))
    with torch.no_grad():
        wide, _ = module(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            narrow, _ = module(batch)
            scores = module.scores(narrow)
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.05)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores.sum(1), torch.ones(3, dtype=torch.float64))


@lightning_remarks
def test_bf16_under_the_trainer() -> None:
    module = downstream()
    made = samples([0, 1, 0])
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(made, 3), loader(made, 3))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert trainer.callback_metrics["train/loss"].isfinite()
