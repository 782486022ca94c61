"""The commands of project/neurossm/README.md, typed in that folder as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from neuromamba.commands.regions_synthetic import run as make_data
from neuromamba.data.regions.atlases import read_atlas
from neuromamba.data.regions.registry import DATASETS
from neuromamba.neurossm.attribution_files import read_scan_map
from neuromamba.neurossm.reference_maps import TERMS
from tests.helpers.neurosynth_files import needs_nimare, write_database
from tests.helpers.paths import ROOT
from tests.integration.test_neurossm import FIVE

README = ROOT / "project" / "neurossm" / "README.md"
# The README of the reference, as it is given to us.
SIX = """
python tester.py --dataset HCP_REST --model NeuroSSM --device 0
python tester.py --dataset HCP_TASK --model NeuroSSM --device 0
python tester.py --dataset PPMI --model NeuroSSM --device 0
python tester.py --dataset HCP_TASK --model NeuroSSM --analysis --skip_cross_validation --seeds 0 --device 0
python tester.py --dataset PPMI --model NeuroSSM --analysis --skip_cross_validation --seeds 0 --device 0
python Analysis/run_cpa_analysis.py --root ./Analysis/Explainability --out ./Analysis/Explainability_Results
"""  # noqa: E501


def commands() -> list[str]:
    """The six, in the order of the README."""
    text = "\n".join(re.findall(r"(?ms)^```bash\n(.*?)^```", README.read_text(encoding="utf-8")))
    wanted = SIX.strip().splitlines()
    found = [line for line in text.splitlines() if line in wanted]
    assert found == wanted
    return found


def test_the_readme_has_the_commands_of_the_reference() -> None:
    commands()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@needs_nimare
def test_six_commands(tmp_path: Path) -> None:
    """On synthetic files in their places; names, shapes, affines, and values of regions."""
    shutil.copytree(
        ROOT / "project",
        tmp_path / "project",
        ignore=shutil.ignore_patterns("__pycache__", "Data", "Results", "Explainability*"),
    )
    here = tmp_path / "project" / "neurossm"
    data = here / "Dataset" / "Data"
    sizes = {"HCP_REST": (24, 700), "HCP_TASK": (12, 180), "PPMI": (60, 210)}
    for name, (subjects, frames) in sizes.items():
        flags = f"--dataset {name} --subjects {subjects} --frames {frames} --output {data}"
        make_data(flags.split())
    terms = yaml.safe_load(TERMS.read_text(encoding="utf-8"))
    write_database(data, sorted({t for d in terms.values() for ts in d.values() for t in ts}))
    for line in commands():
        words = shlex.split(line.replace("--device 0", "--device cpu"))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *words[1:]], cwd=here, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    for name in sizes:
        folder = here / "Results" / name / "NeuroSSM"
        for file in ("results.csv", "summary.json", "splits.json", "report.html", "curves.png"):
            assert (folder / file).is_file(), (name, file)
    for name in ("HCP_TASK", "PPMI"):
        details = DATASETS[name]
        atlas = read_atlas(data / "atlases" / f"{details.atlas}.nii.gz")
        files = sorted((here / "Analysis" / "Explainability" / name / "seed_0").glob("subj_*.npz"))
        maps = [read_scan_map(file) for file in files]
        assert len(maps) >= 10 and maps[0].cpa.shape == (details.rois,)
        right = {str(one.classes[one.label]) for one in maps if one.correct}
        with_terms = right & set(terms[name])
        folder = here / "Analysis" / "Explainability_Results" / "maps" / name
        assert {p.name for p in folder.iterdir()} == with_terms
        for label in with_terms:
            own = [m for m in maps if m.correct and str(m.classes[m.label]) == label]
            images = {kind: nib.load(folder / label / f"{kind}.nii.gz") for kind in FIVE}
            assert len(list((folder / label).iterdir())) == len(FIVE)
            for image in images.values():
                assert np.array_equal(image.affine, atlas.image.affine)
                assert image.shape == atlas.image.shape
            volume = np.asanyarray(images["cpa_score"].dataobj)
            values = [volume[atlas.labels() == i][0] for i in atlas.ids]
            np.testing.assert_allclose(values, np.mean([m.cpa for m in own], axis=0), atol=1e-6)
