"""Frozen and raw features against what is computed by hand from the windows of a tiny store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import LAST_LAYER
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.windows.dataset import collate_windows
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.frozen_features import frozen_features, pooled_layers, untrained_backbone
from neuromamba.fmamba.layer_outputs import EMBEDDING, layer_names
from neuromamba.fmamba.pooling import POOLS
from neuromamba.fmamba.raw_features import (
    AUTOCORRELATION,
    CONNECTIVITY,
    DEVIATION,
    MEAN_IMAGE,
    lag1_autocorrelation,
    patch_parcellation,
    place_statistics,
    raw_config,
    raw_features,
)
from neuromamba.fmamba.tokenizer import PackedTokens, plan_compact
from neuromamba.fmamba.window_tokens import pack_batch
from tests.helpers.tiny import FRAMES, GRID, write_tiny_run

CONFIG = ModelConfig(
    img_size=(12, 12, 12, 4), patch_size=(6, 6, 6, 2), embed_dim=16, depth=2, d_state=4, headdim=16
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Ten subjects of three windows each."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("store")
    (root / "hdf5").mkdir()
    (root / "metadata").mkdir()
    rows = ["subject,sex,household"]
    for i in range(10):
        write_tiny_run(root / "hdf5" / f"sub-{i:02d}.h5", f"sub-{i:02d}", i)
        rows.append(f"sub-{i:02d},{'FM'[i % 2]},{i // 2}")
    (root / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")
    return made(root)


def made(root: Path, **changes: str) -> RunData:
    config = DataConfig(
        dataset_name=("Dummy",),
        image_path=(str(root),),
        grid=GRID,
        sequence_length=4,
        train_split=0.6,
        val_split=0.2,
        eval_batch_size=4,  # so that batches mix subjects
        **changes,  # type: ignore[arg-type]
    )
    return RunData(config, DownstreamConfig(), write_split=False)


def packed_of(data: RunData, subject: str, part: str = "train") -> list[PackedTokens]:
    """The windows of a subject, each packed by itself."""
    (windows,) = data.window_sets(part)
    found = []
    for i, name in enumerate(windows.subjects):
        if name == subject:
            batch = collate_windows([windows[i]])
            found.append(pack_batch(batch | {"plans": plan_compact(batch["vox"], CONFIG)}, CONFIG))
    return found


def test_layers_are_evenly_spaced() -> None:
    assert layer_names(1, 3) == [EMBEDDING, LAST_LAYER]
    assert layer_names(4, 3) == [EMBEDDING, "block 1", "block 2", "block 3", LAST_LAYER]
    assert layer_names(12, 3) == [EMBEDDING, "block 3", "block 6", "block 9", LAST_LAYER]
    assert layer_names(12, 0) == [EMBEDDING, LAST_LAYER]


def test_rows_are_pools_of_what_each_layer_gives(data: RunData) -> None:
    model = untrained_backbone(CONFIG, 1).eval()
    (packed, *_) = packed_of(data, data.subjects["train"][0][0])
    rows = pooled_layers(model, packed, layer_names(2, 1), tuple(POOLS))
    with torch.inference_mode():
        x = model.embedder(packed.tokens, packed.token_index)
        expected = {EMBEDDING: x.clone()}
        expected["block 1"] = model.mamba_layers[0](x, packed.lengths).clone()
        expected[LAST_LAYER] = model.forward_tokens(packed).features
        assert {kind[0] for kind in rows} == set(expected)
        for (layer, pool), values in rows.items():
            by_hand = POOLS[pool](expected[layer], packed, CONFIG)
            np.testing.assert_allclose(values, by_hand.numpy(), atol=1e-5)
    assert not model.norm._forward_hooks  # nothing is left behind


def test_windows_of_a_subject_are_averaged(data: RunData) -> None:
    model = untrained_backbone(CONFIG, 1)
    settings = {"layers": [EMBEDDING, LAST_LAYER], "pools": ["mean_sd"], "device": CPU}
    samples, found = frozen_features({"one": model}, data, ("train", "val"), **settings)  # type: ignore[arg-type]
    assert samples.names == (*data.subjects["train"][0], *data.subjects["val"][0])
    labels = data.stores[0].labels
    assert labels is not None
    assert samples.target.tolist() == [labels[name] for name in samples.names]
    model.eval()
    for row, name in enumerate(data.subjects["train"][0]):
        windows = packed_of(data, name)
        assert len(windows) == FRAMES // 4
        with torch.inference_mode():
            features = [model.forward_tokens(packed).features for packed in windows]
        pooled = [POOLS["mean_sd"](x, p, CONFIG) for x, p in zip(features, windows, strict=True)]
        expected = torch.cat(pooled).mean(0).numpy()
        np.testing.assert_allclose(found["one"][LAST_LAYER, "mean_sd"][row], expected, atol=1e-5)


def test_an_untrained_backbone_is_random_by_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = (untrained_backbone(CONFIG, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.embedder.projection, same.embedder.projection)
    assert not torch.equal(one.embedder.projection, other.embedder.projection)
    assert one.output_layer is None


def test_units_are_families_where_there_are_some(data: RunData) -> None:
    families = made(data.stores[0].image_path, family_column="household")
    places = patch_parcellation(GRID, (6, 6, 6, 2), np.arange(12**3))
    for found, count in ((data, 8), (families, 4)):
        samples, _ = place_statistics(raw_of(found), ("train", "val"), places)
        assert len(samples.names) == 8
        assert len(set(samples.unit)) == count


def raw_of(data: RunData) -> RunData:
    return RunData(raw_config(data.config), data.task, write_split=False)


# --- the raw signal -----------------------------------------------------------------------------


def test_autocorrelation_by_hand() -> None:
    rng = np.random.default_rng(0)
    series = rng.normal(5, 2, (30, 3))
    series[:, 2] = 4
    expected = []
    for x in series[:, :2].T - series[:, :2].mean(0)[:, None]:
        expected.append(sum(x[t] * x[t + 1] for t in range(29)) / sum(x[t] ** 2 for t in range(30)))
    np.testing.assert_allclose(lag1_autocorrelation(series), [*expected, 0])


def test_places_by_hand(data: RunData) -> None:
    places = patch_parcellation(GRID, (6, 6, 6, 2), np.arange(12**3))
    raw = raw_of(data)
    samples, rows = place_statistics(raw, ("test",), places)
    (windows,) = raw.window_sets("test")
    for row, name in enumerate(samples.names):
        deviations, correlations = [], []
        for i, subject in enumerate(windows.subjects):
            if subject != name:
                continue
            item = windows[i]
            volume = np.full((4, 12**3), np.nan)
            volume[:, item["vox"].numpy()] = item["bold"].numpy() * item["gain"] + item["shift"]
            volume = volume.reshape(4, 2, 6, 2, 6, 2, 6)
            count = np.isfinite(volume).sum(axis=(2, 4, 6))
            mean = np.nansum(volume, axis=(2, 4, 6)) / np.maximum(count, 1)
            deviations.append(mean.reshape(4, 8).std(axis=0))
            correlations.append(lag1_autocorrelation(mean.reshape(4, 8)))
        for kind, expected in ((DEVIATION, deviations), (AUTOCORRELATION, correlations)):
            assert (np.mean(expected, axis=0) != 0).sum() == 5  # patches with brain
            np.testing.assert_allclose(rows["raw", kind][row], np.mean(expected, axis=0), rtol=1e-4)


def test_raw_features_do_not_depend_on_the_scaling_of_the_model(data: RunData) -> None:
    image_path = data.stores[0].image_path
    one = raw_features(data, ("train", "val"), patch=CONFIG.patch_size)
    other = raw_features(
        made(image_path, input_scaling_method="minmax_zeroback"),
        ("train", "val"),
        patch=CONFIG.patch_size,
    )
    assert set(one) == {AUTOCORRELATION, DEVIATION, CONNECTIVITY, MEAN_IMAGE}
    for name in one:
        for ours, theirs, count in zip(one[name], other[name], (8, 2), strict=True):
            assert len(ours) == count and np.ptp(ours) > 0
            np.testing.assert_array_equal(ours, theirs)
