"""Every kind of page that the commands write, from tiny models."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel

from neuromamba.commands import embed, explain, predict, quality, regions_extract, report
from neuromamba.commands import rollout as rollout_command
from neuromamba.commands.train import run as train_run
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python
from tests.helpers.region_pages import REFERENCE_PAGES, write_reference_pages
from tests.helpers.trained_model import Trained
from tests.helpers.trained_regions import TrainedRegions, volumes_of

RUNS = ("sex", "age", "backbone")
PAGES = (
    *(f"report of {name}" for name in RUNS),
    *("predict", "embed", "embed with labels", "explain", "rollout", "quality", "demo", "probe"),
    *("comparison of runs", "regions train", "attribution", "regions predict", "regions explain"),
    *("regions extract", *REFERENCE_PAGES),
)


def write_pages(folder: Path, trained: Trained, regions: TrainedRegions) -> dict[str, Path]:
    """Run the commands that write pages; some minutes.

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

    labels = ["--labels", str(trained.nifti / "participants.csv"), "--label_column", "sex"]
    given = [str(trained.backbone), str(trained.nifti), *labels, "-o", str(folder / "labelled")]
    called("embed with labels", embed.main(given), folder / "labelled" / "report.html")

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
    other = folder / "runs" / "other"
    shared = (
        f"--dataset_name Dummy --image_path {trained.store} --img_size 12 12 12 8 --embed_dim 16 "
        f"--depth 2 --train_split 0.5 --val_split 0.2 --max_epochs 1 --batch_size 2 "
        f"--accelerator cpu --input_scaling_method voxelnorm_zeroback --downstream_task sex"
    )
    train_run(f"{shared} --seed 7 --learning_rate 1e-2 --output_dir {other}".split())
    where = folder / "comparison"
    status = report.main([str(folder / "runs" / "sex"), str(other), "--output", str(where)])
    called("comparison of runs", status, where / "report.html")
    found |= write_reference_pages(folder / "reference", regions)
    return found
