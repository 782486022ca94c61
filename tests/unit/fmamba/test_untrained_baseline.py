"""The linear model of an untrained backbone's features, against scikit-learn on the same rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from neuromamba.config.names import LAST_LAYER
from neuromamba.fmamba import frozen_features as features_module
from neuromamba.fmamba.frozen_features import frozen_features, untrained_backbone
from neuromamba.fmamba.untrained_baseline import POOL, untrained_baseline
from tests.helpers.tiny import CommandLine, write_tiny_run


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    root = tmp_path_factory.mktemp("untrained")
    (root / "store" / "hdf5").mkdir(parents=True)
    (root / "store" / "metadata").mkdir()
    rows = ["subject,sex,age"]
    for i in range(20):
        write_tiny_run(root / "store" / "hdf5" / f"s{i:02}.h5", f"s{i:02}", i)
        rows.append(f"s{i:02},{'FM'[i % 2]},{20 + 3 * i}")
    (root / "store" / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")
    return CommandLine(root / "store", root)


def test_it_is_a_logistic_regression_of_the_frozen_features(line: CommandLine) -> None:
    data, config = line.data("--downstream_task sex"), line.planned().config.model
    (found,) = untrained_baseline(config, data, line.folder / "one", seed=3)
    model = {"any": untrained_backbone(config, 3)}
    parts = []
    for names in (("train", "val"), ("test",)):
        samples, rows = frozen_features(
            model, data, names, layers=[LAST_LAYER], pools=[POOL], device=torch.device("cpu")
        )
        parts.append((samples, rows["any"][LAST_LAYER, POOL]))
    (fitted, x), (tested, new) = parts
    penalty = float(found.text.split("C = ")[1].split()[0])
    scale = StandardScaler().fit(x)
    width = np.sqrt(x.shape[1])
    plain = LogisticRegression(C=penalty, max_iter=10_000).fit(
        scale.transform(x) / width, fitted.target
    )
    expected = plain.predict_proba(scale.transform(new) / width)
    assert found.scores.subjects == tested.names
    np.testing.assert_allclose(found.scores.score, expected, atol=1e-3)
    assert f"fitted on {len(fitted.names)} subjects" in found.text


def test_kept_for_the_same_data_and_architecture(
    line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = line.data("--downstream_task sex"), line.planned().config.model
    folder, calls = line.folder / "kept", []
    real = features_module.frozen_features

    def counted(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(features_module, "frozen_features", counted)
    first = untrained_baseline(config, data, folder)
    again = untrained_baseline(config, data, folder)
    assert len(calls) == 2  # fitted, tested
    np.testing.assert_array_equal(first[0].scores.score, again[0].scores.score)
    untrained_baseline(dataclasses.replace(config, depth=2), data, folder)
    assert len(calls) == 4
    regression = untrained_baseline(config, line.data("--downstream_task age"), folder)
    assert len(calls) == 6 and regression[0].scores.score.shape[1] == 1
    assert regression[0].text.startswith("Ridge regression")
