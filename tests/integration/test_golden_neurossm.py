"""Results of NeuroSSM that version 0.1.0 wrote are finished, extended and explained alike.

``tests/helpers/golden_runs.py`` says what the files are and how numbers are compared.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.golden_runs import (
    EXACT,
    EXPECTED,
    TRAINED,
    call,
    command,
    copy_of_runs,
    same,
    scores,
    table,
)
from tests.helpers.neurosynth_files import needs_nimare, write_database
from tests.helpers.paths import ROOT

TESTER = str(ROOT / "project" / "neurossm" / "tester.py")
# As they were typed for the results; see make_runs.py.
SSM = (
    "--dataset Own --data_file scans.pickle --target group --dynamic_length 16 --device cpu "
    "--embed_dim 32 --depth 1 --scales 2 --folds 2 --epochs 8 --batch_size 4 --learning_rate 1e-3 "
    "--max_learning_rate 3e-3 --atlas six.nii.gz"
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the files."""
    return copy_of_runs(tmp_path)


def maps_of(folder: Path) -> dict[str, Any]:
    """The numbers of the files of CPA."""
    found = {}
    for path in sorted(folder.glob("subj_*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            found[path.name] = {
                name: archive[name].astype(float).tolist()
                for name in ("probs", "logits", "drops", "weights", "cpa", "dominant")
            }
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files of finished fits."""
    files = [path for path in sorted(folder.glob("*/seed_0/*/**/*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_old_results_of_neurossm_are_finished(old: Path) -> None:
    """The same call repeats no fit, gives the same tables, and explains the old weights alike."""
    place = old / "neurossm"
    results, maps = place / "Results" / "Own", place / "Analysis/Explainability/Own/seed_0"
    before, settings = contents(results), (results / "NeuroSSM" / "settings.json").read_text()
    for path in results.glob("*/results.csv"):
        path.unlink()
    for path in maps.iterdir():
        path.unlink()
    baselines = ["--baselines", "FC", "MeanVariance"]  # those of that version
    said = call(place, [TESTER, *SSM.split(), *baselines, "--analysis"])
    assert said.count("done before") == 9 and "scans to fit" not in said
    after = contents(results)
    # Results of that version get what they lacked: a file by which the model can be used.
    added = {Path(name).name for name in after.keys() - before.keys()}
    assert added <= {"model.safetensors"}
    assert {name: after[name] for name in before} == before
    assert json.loads((results / "NeuroSSM" / "settings.json").read_text()) == json.loads(settings)
    found = {
        path.parent.name: [scores(row) for row in table(path)]
        for path in sorted(results.glob("*/results.csv"))
    }
    same(found, EXPECTED["neurossm"]["results"], EXACT)
    same(maps_of(maps), EXPECTED["neurossm"]["maps"], TRAINED)
    assert (results / "NeuroSSM" / "report.html").is_file()


@pytest.mark.slow
def test_a_seed_is_added_to_old_results(old: Path, tmp_path: Path) -> None:
    """Old fits are kept; those of the new seed are as in a folder of their own.

    They are not those that the old code would have made: it gave every epoch the order and the
    crops of the first one.
    """
    place = old / "neurossm"
    words = [*SSM.split(), "--seeds", "0", "1", "--baselines"]
    said = call(place, [TESTER, *words])
    assert said.count("done before") == 3 and said.count("scans to fit") == 3
    results, expected = place / "Results" / "Own" / "NeuroSSM", EXPECTED["neurossm"]
    found = [scores(row) for row in table(results / "results.csv")]
    wanted = expected["results_of_two_seeds"]
    assert [(row["seed"], row["split"]) for row in found] == [
        (row["seed"], row["split"]) for row in wanted
    ]
    of_old = [[row for row in rows if float(row["seed"]) == 0] for rows in (found, wanted)]
    assert len(of_old[0]) == 3
    same(of_old[0], of_old[1], TRAINED)
    fresh = tmp_path / "fresh"
    shutil.copytree(place, fresh, ignore=shutil.ignore_patterns("Results"))
    call(fresh, [TESTER, *words])
    for split in ("fold_1", "holdout"):
        file = Path("Results") / "Own" / "NeuroSSM" / "seed_1" / split / "predictions.csv"
        assert (place / file).read_text() == (fresh / file).read_text()


@pytest.mark.slow
@needs_nimare
def test_old_maps_are_compared_with_neurosynth(old: Path) -> None:
    place = old / "neurossm"
    write_database(place / "data", ("left", "right"))
    (place / "terms.yaml").write_text("Own: {a: [left]}\n")
    flags = "--root Analysis/Explainability --out out --data_dir data --terms terms.yaml"
    command(place, "cpa", f"{flags} --atlas six.nii.gz --draws 50")
    found = json.loads((place / "out" / "reports" / "Own" / "scores.json").read_text())
    expected = EXPECTED["neurossm"]["reference"]
    assert set(expected["classes"]) == {"a"}
    same({name: found[name] for name in expected}, expected, TRAINED)
