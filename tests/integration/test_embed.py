"""Embeddings of a trained model: layers, pools, statistics, files; ``neuromamba embed``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import neuromamba
from neuromamba.commands import embed
from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from tests.helpers.scans import LAS, SHAPE, save
from tests.helpers.trained_model import Trained


@pytest.fixture(scope="module")
def sex(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.sex, device="cpu")


def test_embeddings_by_window_and_subject(trained: Trained, sex: LoadedModel) -> None:
    """The pool "mean_sd" of the head is the mean and the deviation side by side."""
    from neuromamba.fmamba.pooling import mean_sd

    scan = sex.prepare(trained.scan(0))
    by_window = sex.embed(scan, pool="window")
    with torch.inference_mode():
        expected = torch.cat(
            [
                mean_sd(sex.backbone.forward_tokens(packed).features, packed, sex.contract.model)
                for _, packed in sex.batches(scan)
            ]
        ).numpy()
    by_kind = np.concatenate(
        [
            by_window.values[[one == kind for one in by_window.index["statistic"]]]
            for kind in ("mean", "sd")
        ],
        axis=1,
    )
    assert by_kind == pytest.approx(expected, abs=1e-5)
    whole = sex.embed(scan)
    assert whole.values == pytest.approx(expected.reshape(len(expected), 2, -1).mean(0), abs=1e-5)
    assert whole.index["statistic"] == ["mean", "sd"]
    assert whole.index["window"] == [None, None]


def test_tokens_have_places_and_times(trained: Trained, sex: LoadedModel) -> None:
    scan = sex.prepare(trained.scan(0))
    tokens = sex.embed(scan, pool="token", layer=0)
    index = {name: np.array(values) for name, values in tokens.index.items()}
    assert set(index["time"]) >= {1.0, 5.0, 17.0}  # centres of 2 frames of 2 s, from frame 0
    assert np.abs(index["x"]).max() < 100
    # Patches of 6 voxels of 16 mm about the middle of the grid.
    assert len(set(index["x"])) == 2
    assert np.ptp(index["x"]) == pytest.approx(96)
    assert index["layer"].tolist() == ["embedding"] * len(tokens.values)


def test_lag1_is_the_change_from_token_to_token(trained: Trained, sex: LoadedModel) -> None:
    scan = sex.prepare(trained.scan(0))
    tokens = sex.embed(scan, pool="token")
    places = np.column_stack([tokens.index[name] for name in ("window", "x", "y", "z")])
    time = np.array(tokens.index["time"])
    found = []
    for place in np.unique(places[places[:, 0] == 0], axis=0):
        here = np.flatnonzero((places == place).all(axis=1))
        here = here[np.argsort(time[here])]
        change = np.diff(tokens.values[here].astype(np.float64), axis=0)
        found.append(np.sqrt(np.square(change).mean(axis=0)))
    embedded = sex.embed(scan, pool="window", statistics=["lag1"])
    assert embedded.values[0] == pytest.approx(np.mean(found, axis=0), abs=1e-5)


def test_regions_of_an_atlas(trained: Trained, sex: LoadedModel, tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.int16)
    labels[: SHAPE[0] // 2] = 3  # LAS: low x is the right side
    labels[SHAPE[0] // 2 :] = 7
    atlas = save(tmp_path / "halves.nii.gz", labels, LAS)
    (tmp_path / "halves.csv").write_text("index,name\n3,right\n7,left\n")
    scan = sex.prepare(trained.scan(0))
    found = sex.embed(scan, pool="region", atlas=atlas, statistics=["mean"])
    assert found.index["region"] == ["right", "left"]
    tokens = sex.embed(scan, pool="token")
    x = np.array(tokens.index["x"])
    for row, side in enumerate((x > 0, x < 0)):
        assert found.values[row] == pytest.approx(tokens.values[side].mean(axis=0), abs=1e-5)
    coarse = sex.embed(scan, pool="region")
    assert set(coarse.index["region"]) <= {f"{i}-{j}-{k}" for i in "01" for j in "01" for k in "01"}


def test_embed_writes_parquet_and_a_page(trained: Trained, tmp_path: Path) -> None:
    import pandas

    out = tmp_path / "out"
    argv = [
        str(trained.backbone),
        str(trained.nifti),
        "-o",
        str(out),
        "--statistics",
        "mean",
        "lag1",
    ]
    labels = ["--labels", str(trained.nifti / "participants.csv"), "--label_column", "sex"]
    assert embed.main([*argv, *labels]) == 0
    table = pandas.read_parquet(out / "embeddings.parquet")
    assert list(table.columns) == [
        *("scan", "subject", "session", "run", "window", "region", "statistic", "layer"),
        *(f"f{i}" for i in range(16)),
    ]
    assert len(table) == 20
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Map of the scans" in page
    assert "Not defined" in page  # five subjects a class are too few for probes
    before = (out / "embeddings.parquet").read_bytes()
    assert embed.main([*argv, "--no-report"]) == 0  # all are finished
    assert (out / "embeddings.parquet").read_bytes() == before


def test_layers_by_number(trained: Trained, sex: LoadedModel) -> None:
    scan = sex.prepare(trained.scan(0))
    assert sex.embed(scan, layer=-1).layer == "features"
    assert sex.embed(scan, layer=-2).layer == sex.embed(scan, layer=1).layer == "block 1"
    for absent in (3, -4):
        with pytest.raises(
            UserInputError, match=rf"no layer {absent}\. Its layers are 0 .*, 1 to 2"
        ):
            sex.embed(scan, layer=absent)
    with pytest.raises(UserInputError, match="--atlas"):
        sex.embed(scan, atlas="Schaefer400")
