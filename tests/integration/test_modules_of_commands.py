"""The use of a model imports what it computes with, and nothing that trains or evaluates.

Modules are counted, because seconds depend on who else computes. torch alone has some 1,120 here;
Lightning brings 2,600 more, scikit-learn with scipy.stats 1,100.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.loaded_modules import LIGHTNING, MEDICAL, run_and_count
from tests.helpers.trained_model import Trained
from tests.helpers.trained_regions import TrainedRegions

TRAINING = {*LIGHTNING, "transformers", "torch._dynamo"}
STATISTICS = {"scipy.stats", "scipy.ndimage", "sklearn", "nilearn"}
LOADING = """
def main(words):
    import neuromamba
    for word in words:
        neuromamba.load(word, device="cpu")
    return 0
"""
# Several calls in one process, as a process each would take seconds more.
CALLS = """
def main(words):
    from neuromamba.__main__ import main as call
    calls = " ".join(words).split(" + ")
    return max(call(one.split()) for one in calls)
"""


def test_load(trained: Trained, trained_regions: TrainedRegions) -> None:
    for model in (trained.sex, trained_regions.fit):
        found = run_and_count(str(model), main=LOADING)
        assert found.status == 0
        assert not {*TRAINING, *STATISTICS, "pandas", "matplotlib"} & set(found.slow)
        assert found.modules < 1560


@pytest.fixture(scope="module")
def calls(
    trained: Trained, trained_regions: TrainedRegions, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[str, ...]]]:
    """Command -> its words, for a model of volumes and for one of regions."""
    folder = tmp_path_factory.mktemp("calls")
    volumes = (str(trained.sex), str(trained.scan(0)))
    series = folder / "series.csv"
    values = next(iter(trained_regions.scans.values())).T
    series.write_text("\n".join(",".join(f"{x:.6f}" for x in row) for row in values))
    regions = (str(trained_regions.fit), str(series))
    backbone = (str(trained.backbone), str(trained.scan(0)))
    out = str(folder / "out")
    both = (volumes, regions)

    def to_files(command: str, *flags: str) -> list[tuple[str, ...]]:
        return [(command, *of, "-o", f"{out}_{command}{i}", *flags) for i, of in enumerate(both)]

    return {
        "check": [("check", *of) for of in both],
        "predict": to_files("predict"),
        "embed": to_files("embed"),
        "rollout": [("rollout", *backbone, "-o", f"{out}_rollout", "--frames", "2")],
        "explain": to_files("explain", "--steps", "2")[1:],
    }


@pytest.mark.parametrize(
    ("command", "most", "without"),
    [
        ("check", 1560, {*TRAINING, *STATISTICS, "pandas", "matplotlib"}),
        ("predict", 1900, {*TRAINING, *STATISTICS, "pandas"}),
        ("embed", 2320, {*TRAINING, *STATISTICS}),  # pyarrow brings pandas
        ("rollout", 1900, {*TRAINING, *STATISTICS, "pandas"}),
        ("explain", 2400, {*TRAINING, "sklearn"}),
    ],
)
def test_what_uses_a_model_loads_nothing_that_trains(
    calls: dict[str, list[tuple[str, ...]]], command: str, most: int, without: set[str]
) -> None:
    words = " + ".join(" ".join(one) for one in calls[command])
    found = run_and_count(*words.split(), main=CALLS)
    assert found.status == 0, found.errors
    assert not without & set(found.slow)
    assert found.modules < most


@pytest.mark.parametrize("name", ["sex", "age", "backbone"])
def test_a_report_loads_nothing_that_fits_baselines(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    words = ("report", str(getattr(trained, name)), "--output", str(tmp_path), "--no-baselines")
    found = run_and_count(*words)
    assert found.status == 0, found.errors
    assert not {*TRAINING, *MEDICAL, "scipy.stats"} & set(found.slow)
    assert found.modules < 1930
