"""Decoding of real tasks from frozen features that are kept apart by place.

    python paper/frozen_decoding.py --haxby2001 DIR --sherlock_pmc DIR --output_dir output/frozen

For each fold a small backbone is pre-trained without labels on the runs or subjects that are not
left out, with every voxel standardised, and frozen. Linear models of its features at each place
(``--pools places`` of ``neuromamba probe``) are fitted on the same runs or subjects and tested on
those left out: eight object categories of haxby2001 (one run of ten left out at a time), and of
sherlock_pmc (three or four subjects of thirteen left out at a time) which of 50 scenes of a film is
seen, and whether the film is seen or recalled. Beside them stand an untrained backbone and the raw
voxels on the same folds. Writes ``frozen_decoding.md``, ``.json`` and ``.png`` into the output
folder. Called again, it goes on where it was ended.

Exit status: 0; 1 if a command failed; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make `paper` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.common.stages import Pipeline, Stage, StageFailure, run_stage
from paper import haxby2001

HAXBY_FOLDS = tuple(range(1, haxby2001.RUNS + 1))
SHERLOCK_FOLDS = (1, 2, 3, 4)
MODEL = (
    *("--embed_dim", "64", "--depth", "2", "--learning_rate", "3e-3"),
    *("--input_scaling_method", "voxelnorm_zeroback", "--accelerator", "cpu"),
)
HAXBY = (
    *("--group_by", "run", "--train_split", "0.8", "--val_split", "0.1"),
    *("--img_size", *haxby2001.GRID, "8", "--patch_size", "4", "4", "1", "2"),
    *("--stride_between_seq", "0.5", "--batch_size", "8"),
)
SHERLOCK = (
    *("--train_split", "0.6", "--val_split", "0.1"),
    *("--img_size", "9", "12", "9", "6", "--patch_size", "3", "3", "3", "2"),
    *(
        "--batch_size",
        "16",
    ),
)
Prepare = Callable[[Path, Path], None]
DATASETS = ("haxby2001", "sherlock_pmc")


def pretrain(store: Path, folder: Path, flags: Sequence[str], *, fold: int, seed: int) -> float:
    """Pre-train on the training part of a split; returns the dynamic skill on validation runs."""
    from neuromamba.commands.train import run

    metrics = run(
        [
            *("--pretraining", "--use_autoregressive", "--dataset_name", "Own"),
            *("--image_path", str(store), "--dataset_split_num", str(fold)),
            *("--seed", str(seed), "--output_dir", str(folder), *MODEL, *flags),
        ]
    )
    return float(metrics["val/dynamic_skill"])


def prepare_haxby(data: Path, out: Path) -> None:
    """The store, splits and events of ``haxby2001.py``."""
    out.mkdir()
    haxby2001.prepare(data, out)
    store = out / "store"
    folders = ("--input", str(out / "bids"), "--output", str(store))
    grid = ("--img_size", *haxby2001.GRID, "--space", "native", "--mask", "nonzero")
    run_stage("convert", ("preprocess", *folders, *grid, "--voxel_norm"))
    haxby2001.write_splits(store)


def haxby_fold(out: Path, folder: Path, *, fold: int, seed: int, epochs: int) -> dict[str, Any]:
    """Pre-train and decode with one run left out: dynamic skill and accuracies."""
    from neuromamba.reports.real_subjects.frozen_samples import read_samples
    from neuromamba.reports.real_subjects.sherlock_scores import POOLS
    from paper.decoding_scores import haxby_rows

    flags = (*HAXBY, "--max_epochs", str(epochs))
    skill = pretrain(out / "store", folder / "pretraining", flags, fold=fold, seed=seed)
    task = ("--events", str(out / "events.tsv"), "--event_delay", "5", "--stride_between_seq", "1")
    samples = read_samples(folder / "pretraining", seed, task, POOLS, volume=True)
    return {"dynamic_skill": skill, "category": haxby_rows(samples, seed)}


def prepare_sherlock(data: Path, out: Path) -> None:
    """The store, splits and events."""
    from neuromamba.reports.real_subjects import sherlock_data

    sherlock_data.prepare_sherlock(data, out)


def sherlock_fold(
    data: Path, out: Path, folder: Path, *, fold: int, seed: int, epochs: int
) -> dict[str, Any]:
    """Pre-train and decode with some subjects left out: dynamic skill and scores."""
    from neuromamba.reports.real_subjects.sherlock_steps import decoded

    flags = (*SHERLOCK, "--max_epochs", str(epochs))
    skill = pretrain(out / "store", folder / "pretraining", flags, fold=fold, seed=seed)
    return {"dynamic_skill": skill, **decoded(folder / "pretraining", data, out, seed)}


@dataclass(frozen=True)
class Job:
    """A fold with a seed.

    Attributes:
        data: folder of the recordings.
        out: of all results; what was prepared lies in its folder ``name``.
        name: of the data set.
        fold, seed, epochs: of the pre-training.
    """

    data: Path
    out: Path
    name: str
    _: KW_ONLY
    fold: int
    seed: int
    epochs: int

    def result(self, pipeline: Pipeline) -> dict[str, Any]:
        """Do the fold, or read what it found before."""
        name = f"{self.name}, fold {self.fold}, seed {self.seed}"
        folder = self.out / f"{self.name}_fold_{self.fold}_seed_{self.seed}"
        which = {"fold": self.fold, "seed": self.seed, "epochs": self.epochs}
        haxby = self.name == "haxby2001"

        def work() -> None:
            print(name, flush=True)
            prepared = self.out / self.name
            if haxby:
                found = haxby_fold(prepared, folder, **which)
            else:
                found = sherlock_fold(self.data, prepared, folder, **which)
            text = json.dumps(found, indent=1) + "\n"
            (folder / "result.json").write_text(text, encoding="utf-8")

        settings = json.dumps([MODEL, HAXBY if haxby else SHERLOCK, self.epochs])
        stage = Stage(name=name, makes=(folder,), settings=settings, after=(self.name,))
        pipeline.do(stage, work)
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return found


def run(args: argparse.Namespace) -> None:
    """Do every stage that is not finished, and write the results."""
    given = {name: Path(getattr(args, name)) for name in DATASETS if getattr(args, name)}
    if not given:
        raise UserInputError("--haxby2001, --sherlock_pmc: neither is given; name a folder.")
    for flag in ("haxby_seeds", "sherlock_seeds", "haxby_epochs", "sherlock_epochs"):
        if getattr(args, flag) < 1:
            raise UserInputError(f"--{flag}: got {getattr(args, flag)}, expected 1 or more.")
    out = Path(args.output_dir)
    pipeline = Pipeline(out, "frozen_decoding_stages.json")
    for name, data in given.items():
        prepare = {"haxby2001": prepare_haxby, "sherlock_pmc": prepare_sherlock}[name]

        def make(prepare: Prepare = prepare, data: Path = data, folder: Path = out / name) -> None:
            prepare(data, folder)

        pipeline.do(Stage(name=name, makes=(out / name,), settings=str(data.resolve())), make)
    epochs = {"haxby2001": args.haxby_epochs, "sherlock_pmc": args.sherlock_epochs}
    seeds = {"haxby2001": args.haxby_seeds, "sherlock_pmc": args.sherlock_seeds}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in given}
    for name, data in given.items():
        for seed in range(seeds[name]):
            for fold in HAXBY_FOLDS if name == "haxby2001" else SHERLOCK_FOLDS:
                job = Job(data, out, name, fold=fold, seed=seed, epochs=epochs[name])
                parts[name].append(job.result(pipeline))
    from paper.decoding_report import write_report

    write_report(parts, out, seeds=seeds, epochs=epochs)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--haxby2001", metavar="DIR", help="PyMVPA's haxby2001")
    add("--sherlock_pmc", metavar="DIR", help="folder of sherlock_pmc_dev.npz")
    add("--output_dir", default="output/frozen_decoding", metavar="DIR")
    add("--haxby_seeds", type=int, default=2, help="pre-trainings of each fold of haxby2001")
    add("--sherlock_seeds", type=int, default=2, help="pre-trainings of each fold of sherlock_pmc")
    add("--haxby_epochs", type=int, default=8, help="of each pre-training on haxby2001")
    add("--sherlock_epochs", type=int, default=2, help="of each pre-training on sherlock_pmc")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return run_command(lambda: run(args), "call again to continue.")
    except StageFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
