"""Every kind of page that the commands write, from tiny models."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel

from neuromamba.commands import embed, explain, predict, quality, regions_extract, report
from neuromamba.commands import rollout as rollout_command
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python
from tests.helpers.trained_model import Trained
from tests.helpers.trained_regions import TrainedRegions, volumes_of

RUNS = ("sex", "age", "backbone")
PAGES = (
    *(f"report of {name}" for name in RUNS),
    *("predict", "embed", "explain", "rollout", "quality", "regions train", "attribution"),
    *("regions predict", "regions explain", "regions extract", "demo", "probe"),
)


def write_pages(folder: Path, trained: Trained, regions: TrainedRegions) -> dict[str, Path]:
    """Run the commands that write pages; about two minutes.

    Args:
        folder: of all that is written.
        trained, regions: models, whose folders stay unchanged.

    Returns:
        Name of ``PAGES`` -> its file.
    """
    scans = [str(trained.scan(number)) for number in range(2)]
    found: dict[str, Path] = {}

    def called(name: str, status: int, page: Path) -> None:
        assert status == 0, name
        found[name] = page

    for name in RUNS:
        run = folder / "runs" / name
        shutil.copytree(getattr(trained, name), run)
        called(f"report of {name}", report.main([str(run)]), run / "report" / "report.html")
    for name, command, model in (
        ("predict", predict, trained.sex),
        ("embed", embed, trained.backbone),
        ("explain", explain, trained.sex),
        ("rollout", rollout_command, trained.backbone),
    ):
        given = [scans[0], "--frames", "6"] if name == "rollout" else scans
        status = command.main([str(model), *given, "-o", str(folder / name)])
        called(name, status, folder / name / "report.html")
    store = folder / "store"
    shutil.copytree(trained.store, store)
    called(
        "quality",
        quality.main(["--image_path", str(store), "--num_workers", "1"]),
        store / "quality" / "quality.html",
    )

    found["regions train"] = regions.results / "report.html"
    found["attribution"] = next(regions.maps.parent.rglob("*.html"))
    bold = folder / "bold" / "sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz"
    bold.parent.mkdir()
    nibabel.save(volumes_of(regions.atlas)[0], bold)
    atlas = ["--atlas", str(regions.atlas_file)]
    for name, command in (("predict", predict), ("explain", explain)):
        where = folder / f"regions_{name}"
        status = command.main([str(regions.fit), str(bold), *atlas, "-o", str(where)])
        called(f"regions {name}", status, where / "report.html")
    output = folder / "extracted.pickle"
    given = ["--input", str(bold.parent), *atlas, "--output", str(output), "--min_dof", "5"]
    called("regions extract", regions_extract.main(given), output.with_suffix(".html"))

    subprocess.run(
        [
            preloaded_python(),
            "-m",
            "neuromamba",
            "demo",
            "--quick",
            "--output_dir",
            folder / "demo",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    found["demo"] = folder / "demo" / "report.html"
    found["probe"] = folder / "demo" / "probe.html"
    return found
