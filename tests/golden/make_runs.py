"""Makes ``tests/golden/runs_0_1_0``: files of version 0.1.0 that later versions must still read.

Run with commit e26d2a3 (version 0.1.0), from a checkout of it with DeepSpeed and NiMARE in its
environment:

    python -m tests.golden.make_runs /golden

The files are not made again by later versions: what they prove is that a store, run folders,
checkpoints, exports and results of NeuroSSM written by the code of that day still load, resume,
test, report and export with the same numbers. ``tests/integration/test_golden_runs.py`` and
``test_golden_neurossm.py`` do so.

All commands are called in the given folder, which must not exist yet, with relative paths, so that
``config.yaml`` and the cards name no folder of a machine. Lightning's checkpoints hold the absolute
path of ``best.ckpt``, and exports that of their source: they begin with the given folder, which
therefore has a plain name and is gone when the files are used.

What is left out of the folder is left out by ``KEPT``; no file is changed after it was written.
``expected.json`` holds what the same code gave when it used the files: losses of the same
pre-training without a stop, predictions of ``--test_only``, figures of the quality page and so on.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors import safe_open
from tests.integration.neurosynth_files import write_database

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("runs_0_1_0")
DATA_LAYER = "project/module/utils/data_preprocess_and_load"
MAIN = "project/main.py"
TESTER = "project/neurossm/tester.py"

# ------------------------------------------------------------------------------ command lines

FLAGS = (
    "--dataset_name Dummy --image_path store --img_size 9 9 9 4 --patch_size 3 3 3 2 "
    "--embed_dim 16 --depth 1 --train_split 0.5 --val_split 0.25 --stratify_by sex --batch_size 3 "
    "--accelerator cpu --learning_rate 1e-2 --dropout 0.2 --log_every_n_steps 1"
)
PRETRAIN = f"{FLAGS} --pretraining --use_autoregressive --max_epochs 3"
SIGNAL_AFTER = 8  # steps of the 18; the run ends a little later, inside the second epoch
# Nobody resumes these, and without moments of the gradient a checkpoint is a third as large.
TASK = "--load_model_path runs/pretraining/checkpoints/last.ckpt --optimizer SGD --momentum 0 "
TASK += "--max_epochs 2"
TASKS = {
    "sex": f"{TASK} --downstream_task sex --adjust_thresh",
    "age": f"{TASK} --downstream_task age --clf_head_version mamba --freeze_feature_extractor",
    "kind": f"{TASK} --label_csv kinds.csv --target_column kind --lora_rank 2",
}
# Without a schedule it can be continued for a longer time than was planned.
ZERO = (
    f"{FLAGS} --downstream_task sex --strategy deepspeed_stage_2 --no-use_scheduler --batch_size 2"
)
SSM = (
    "--dataset Own --data_file scans.pickle --target group --dynamic_length 16 --device cpu "
    "--embed_dim 32 --depth 1 --scales 2 --folds 2 --epochs 8 --batch_size 4 --learning_rate 1e-3 "
    "--max_learning_rate 3e-3 --atlas six.nii.gz"
)

CPA = (
    "--root Analysis/Explainability --out out --data_dir data --terms terms.yaml "
    "--atlas six.nii.gz --draws 50"
)
TERMS = "Own: {a: [left]}\n"  # with 6 regions there is room for one class

# Files of the folder that are committed. Of a run's checkpoints only those that are used again:
# best.ckpt of a task, and of the weights of NeuroSSM only the holdout's, which CPA needs.
KEPT = (
    "kinds.csv",
    "store/*",
    "store/hdf5/*",
    "store/metadata/*",
    "store/splits/*",
    "runs/*/*.*",
    "runs/*/logs/metrics.csv",
    "runs/*/splits/*/*",
    "runs/sex/baselines/*",
    "runs/pretraining/checkpoints/last.ckpt",
    "runs/[ask]*/checkpoints/best.ckpt",
    "runs/zero/checkpoints/last.ckpt/latest",
    "runs/zero/checkpoints/last.ckpt/checkpoint/*",
    "exports/*",
    "neurossm/scans.pickle",
    "neurossm/six.nii.gz",
    "neurossm/Results/*/*/*.csv",
    "neurossm/Results/*/*/*.json",
    "neurossm/Results/*/*/seed_*/*/*.csv",
    "neurossm/Results/*/*/seed_*/*/*.json",
    "neurossm/Results/*/*/seed_*/*/logs/metrics.csv",
    "neurossm/Results/*/*/seed_*/holdout/*.safetensors",
    "neurossm/Analysis/Explainability/*/seed_*/*.npz",
    "neurossm/Analysis/Explainability/*/seed_*/*.json",
)

# The run's process gets SIGTERM from itself, as from a scheduler, before the batch behind a step.
STOPPED = """
import os, signal, sys
from pytorch_lightning import Callback
from project.main import main
from project.module.training import trainer
class Stop(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGTERM)
build = trainer.build_callbacks
trainer.build_callbacks = lambda *args: [*build(*args), Stop()]
sys.exit(main(sys.argv[2:]))
"""


class Workshop:
    """Calls commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *words: str | Path, status: int = 0, at: str = ".", **environ: str) -> str:
        """Python with these words; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, words)],
            cwd=self.folder / at,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environ,
            capture_output=True,
            text=True,
        )
        if done.returncode != status:
            raise SystemExit(f"{words}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def program(self, name: str, flags: str, **options: Any) -> str:
        """A program of the repository."""
        return self.call(ROOT / name, *flags.split(), **options)

    def copy(self, name: str) -> str:
        """Of the folder, beside it: what is done there leaves no trace in what is committed."""
        place = self.folder / name
        place.mkdir()
        for part in ("store", "runs", "exports", "neurossm", "kinds.csv"):
            source = self.folder / part
            if source.is_dir():
                shutil.copytree(source, place / part)
            elif source.is_file():
                shutil.copy2(source, place / part)
        return name

    def read(self, *names: str) -> Any:
        """A JSON file."""
        return json.loads(self.folder.joinpath(*names).read_text())


# ------------------------------------------------------------------------------ what is made


def make_store(shop: Workshop) -> None:
    """Synthetic NIfTI runs through the converter; their names and labels are those of Dummy."""
    shop.program(
        f"{DATA_LAYER}/synthetic.py",
        "--output nifti --subjects 12 --frames 12 --grid 9 9 9 --effect_size 3",
    )
    shop.program(
        f"{DATA_LAYER}/preprocessing.py",
        "--input nifti --output store --img_size 9 9 9 --dataset_name Dummy --voxel_norm "
        "--num_workers 1",
    )
    rows = [f"sub-{number:04d},{'abc'[number % 3]}" for number in range(1, 13)]
    (shop.folder / "kinds.csv").write_text("\n".join(["subject,kind", *rows]) + "\n")


def make_runs(shop: Workshop) -> None:
    """One pre-training to its end and one that is stopped, tasks that start from it, and ZeRO."""
    shop.program(MAIN, f"{PRETRAIN} --output_dir whole")
    words = f"{PRETRAIN} --output_dir runs/pretraining".split()
    shop.call("-c", STOPPED, str(SIGNAL_AFTER), *words, status=75)
    for name, flags in TASKS.items():
        shop.program(MAIN, f"{FLAGS} {flags} --output_dir runs/{name}")
    shop.program("project/report.py", "runs/sex")
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = f"{ZERO} --devices 2 --max_epochs 1 --output_dir runs/zero".split()
    shop.call(*two, ROOT / MAIN, *words, DS_ACCELERATOR="cpu")
    # The same folder goes on, elsewhere, for a second epoch.
    at = shop.copy("zero_goes_on")
    words = f"{ZERO} --devices 2 --max_epochs 2 --output_dir runs/zero".split()
    again = ("--resume_ckpt_path", "last")
    shop.call(*two, ROOT / MAIN, *words, *again, at=at, DS_ACCELERATOR="cpu")


def make_exports(shop: Workshop) -> None:
    """Both kinds of a task's checkpoint."""
    for name in ("sex.safetensors", "sex.pt"):
        shop.program("project/export_checkpoint.py", f"runs/sex exports/{name}")


def make_results(shop: Workshop) -> None:
    """NeuroSSM with its baselines and maps, on 24 scans of 6 regions; more seeds elsewhere."""
    place = shop.folder / "neurossm"
    place.mkdir()
    rng = np.random.default_rng(0)
    scans = []
    for number in range(24):
        label = number % 2
        series = rng.standard_normal((6, 24)).cumsum(1) if label else rng.random((6, 24))
        pheno = {"subjectId": f"{number:02d}", "group": "ab"[label]}
        scans.append({"roiTimeseries": series.astype(np.float32), "pheno": pheno})
    (place / "scans.pickle").write_bytes(pickle.dumps(scans))
    labels = np.zeros((12, 12, 12), dtype=np.int16)
    for region in range(6):
        labels[2 * region : 2 * region + 2, 2:10, 2:10] = region + 1
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = -66
    nib.save(nib.Nifti1Image(labels, affine), place / "six.nii.gz")
    shop.program(TESTER, f"{SSM} --analysis", at="neurossm")
    at = shop.copy("more_seeds")
    shop.program(TESTER, f"{SSM} --seeds 0 1 --baselines", at=f"{at}/neurossm")


# ------------------------------------------------------------------------------ what is expected


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with a header; commas or tabs."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def numbers(rows: Iterable[dict[str, str]], *names: str) -> list[dict[str, Any]]:
    """Named columns, or all; cells that are numbers as such, empty ones left out."""

    def cell(value: str) -> Any:
        try:
            return float(value)
        except ValueError:
            return value

    return [
        {name: cell(row[name]) for name in names or row if row.get(name) not in (None, "")}
        for row in rows
    ]


def losses(folder: Path) -> list[dict[str, Any]]:
    """The curves of a run."""
    return numbers(table(folder / "logs" / "metrics.csv"), "step", "train/loss", "val/loss")


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """``metrics.json`` without times."""
    return {name: value for name, value in metrics.items() if not name.endswith("seconds")}


def state_of(path: Path) -> dict[str, Any]:
    """Name -> shape, sum and sum of absolute values of every tensor."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    return {
        name: [list(t.shape), float(t.double().sum()), float(t.double().abs().sum())]
        for name, t in state.items()
    }


def expectations(shop: Workshop) -> dict[str, Any]:
    """What the code gives when it uses the files; see the module."""
    at = shop.copy("used")
    used = shop.folder / at
    found: dict[str, Any] = {
        "made_with": {
            "commit": "e26d2a3",
            **{name: version(name) for name in ("torch", "pytorch-lightning", "deepspeed")},
        },
        "pretraining": {
            "losses": losses(shop.folder / "whole"),
            "metrics": scores(shop.read("whole", "metrics.json")),
            "last": state_of(shop.folder / "whole" / "checkpoints" / "last.ckpt"),
        },
        "tasks": {},
    }
    for name in (*TASKS, "zero"):
        words = f"--test_only --test_ckpt_path runs/{name} --accelerator cpu --output_dir {name}"
        shop.program(MAIN, f"{words} --save_embedding", at=at)
        with np.load(used / name / "embeddings" / "embeddings.npz") as archive:
            embedding = archive["embedding"].astype(float).tolist()
        found["tasks"][name] = {
            "predictions": numbers(table(used / name / "predictions.csv")),
            "metrics": scores(json.loads((used / name / "metrics.json").read_text())),
            "embedding": embedding,
        }
        if name != "zero":
            found["tasks"][name]["trained"] = scores(shop.read("runs", name, "metrics.json"))
            place = shop.folder / "runs" / name / "checkpoints" / "best.ckpt"
            found["tasks"][name]["state"] = state_of(place)
    gone_on = shop.folder / "zero_goes_on" / "runs" / "zero"
    found["zero_goes_on"] = {
        "losses": losses(gone_on),
        "predictions": numbers(table(gone_on / "predictions.csv")),
    }
    found["exports"] = {
        path.name: state_of(path)
        for path in sorted((shop.folder / "exports").iterdir())
        if path.suffix != ".json"
    }
    shop.program(
        "project/quality.py", "--image_path store --patch_size 3 3 3 2 --sequence_length 4", at=at
    )
    found["quality"] = numbers(table(used / "store" / "quality" / "quality.tsv"))
    shop.program(f"{DATA_LAYER}/check_and_clean_hdf5.py", "--image_path store", at=at)
    write_database(used / "neurossm" / "data", ("left", "right"))
    (used / "neurossm" / "terms.yaml").write_text(TERMS)
    shop.program("project/neurossm/Analysis/run_cpa_analysis.py", CPA, at=f"{at}/neurossm")
    scored = shop.read(at, "neurossm", "out", "reports", "Own", "scores.json")
    seeds = shop.folder / "more_seeds" / "neurossm" / "Results" / "Own"
    own = shop.folder / "neurossm"
    maps = sorted(own.glob("Analysis/Explainability/Own/seed_0/subj_*.npz"))
    found["neurossm"] = {
        "results": {
            path.parent.name: [scores(row) for row in numbers(table(path))]
            for path in sorted(own.glob("Results/Own/*/results.csv"))
        },
        "results_of_two_seeds": [
            scores(row) for row in numbers(table(seeds / "NeuroSSM" / "results.csv"))
        ],
        "predictions_of_seed_1": numbers(table(seeds / "NeuroSSM/seed_1/holdout/predictions.csv")),
        "maps": {path.name: map_of(path) for path in maps},
        "reference": {name: scored[name] for name in ("classes", "matrix")},
    }
    return found


def map_of(path: Path) -> dict[str, list[float]]:
    """The numbers of a file of CPA."""
    with np.load(path, allow_pickle=False) as archive:
        return {
            name: archive[name].astype(float).tolist()
            for name in ("probs", "logits", "drops", "weights", "cpa", "dominant")
        }


def rounded(found: Any) -> Any:
    """The same with nine digits of every number."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.9g}") if isinstance(found, float) else found


def keep(folder: Path) -> None:
    """Copy what is committed."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for pattern in KEPT:
        files = [path for path in folder.glob(pattern) if path.is_file()]
        if not files:
            raise SystemExit(f"nothing is named {pattern}")
        for path in files:
            place = GOLDEN / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def main(folder: Path) -> None:
    """Make the files, use them, and keep what is committed."""
    folder.mkdir()
    shop = Workshop(folder)
    for make in (make_store, make_runs, make_exports, make_results):
        make(shop)
        print(f"{make.__name__}: done", flush=True)
    found = expectations(shop)
    keep(folder)
    text = json.dumps(rounded(found), separators=(",", ":"))
    (GOLDEN / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
