"""Decoding of eight object categories on real data (Haxby et al. 2001), one run left out at a time.

    python paper/haxby2001.py --data /path/to/haxby2001 --output_dir output/haxby2001

takes one subject's ten runs as PyMVPA ships them (``bold_1slice.nii.gz`` with the onsets of
``model001``), and for each run trains on eight of the others, chooses the epoch on the ninth and
tests once on the run left out, through the public commands only. Every block is an event of one
category; its windows are averaged. Voxels are standardised within each run, as is usual in
decoding. Beside the model stand the baselines of ``neuromamba report``, a
linear support vector machine on the block's mean volume among them. Writes ``haxby2001.md`` and
``haxby2001.json`` into the output folder. Called again, it goes on where it was ended.

Exit status: 0; 1 if a command failed; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make `project` importable without PYTHONPATH
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.common.stages import Pipeline, Stage, StageFailure, run_stage, shown

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = 10
GRID = ("40", "20", "1")
MODEL_FLAGS = (
    *("--event_delay", "5", "--group_by", "run", "--img_size", *GRID, "8"),
    *("--patch_size", "4", "4", "1", "8", "--embed_dim", "64", "--depth", "2"),
    *("--clf_head_version", "linear", "--batch_size", "8", "--max_epochs", "40"),
    *("--learning_rate", "3e-3", "--accelerator", "cpu", "--seed", "0"),
    *("--input_scaling_method", "voxelnorm_zeroback"),
)
MODEL = "FMamba, from scratch"


def prepare(data: Path, out: Path) -> None:
    """Runs under BIDS names, and one file of events.

    Raises:
        UserInputError: the folder is not PyMVPA's.
    """
    key = data / "models" / "model001" / "condition_key.txt"
    if not key.is_file():
        raise UserInputError(f"--data: '{key}' does not exist; expected PyMVPA's haxby2001.")
    names = {line.split()[1]: line.split()[2] for line in key.read_text().splitlines()}
    (out / "bids").mkdir(parents=True)
    events = ["run\tonset\tduration\ttrial_type"]
    for number in range(1, RUNS + 1):
        source = data / "sub001" / "BOLD" / f"task001_run{number:03d}" / "bold_1slice.nii.gz"
        if not source.is_file():
            raise UserInputError(f"--data: '{source}' does not exist.")
        target = out / "bids" / f"sub-001_task-objects_run-{number:02d}_bold.nii.gz"
        target.symlink_to(source.resolve())
        onsets = data / "sub001/model/model001/onsets" / f"task001_run{number:03d}"
        for condition in sorted(onsets.glob("cond*.txt")):
            for line in condition.read_text().splitlines():
                onset, duration, _ = line.split()
                events.append(f"{number:02d}\t{onset}\t{duration}\t{names[condition.stem]}")
    (out / "events.tsv").write_text("\n".join(events) + "\n", encoding="utf-8")


def write_splits(store: Path) -> None:
    """Split number N: run N is tested, the next one validates, the others train."""
    folder = store / "splits"
    folder.mkdir(exist_ok=True)
    names = [f"sub-001_task-objects_run-{number:02d}" for number in range(1, RUNS + 1)]
    for fold in range(RUNS):
        test, val = names[fold], names[(fold + 1) % RUNS]
        train = [name for name in names if name not in (test, val)]
        lines = ["train_subjects", *train, "val_subjects", val, "test_subjects", test]
        text = "\n".join(lines) + "\n"
        (folder / f"split_fixed_{fold + 1}_by_run.txt").write_text(text, encoding="utf-8")


def collect(out: Path) -> None:
    """Scores of all ten runs left out: the table."""
    import numpy as np

    from neuromamba.evaluation.scores import SubjectScores, read_scores
    from neuromamba.pages.tables import metric_label

    files = {MODEL: "predictions.csv"} | {
        one["name"]: f"baselines/{one['file']}"
        for one in json.loads((out / "fold_1/baselines/baselines.json").read_text())["baselines"]
    }
    scores: dict[str, SubjectScores] = {}
    for name, file in files.items():
        folds = [read_scores(out / f"fold_{fold}" / file) for fold in range(1, RUNS + 1)]
        scores[name] = SubjectScores(
            tuple(subject for fold in folds for subject in fold.subjects),
            np.concatenate([fold.target for fold in folds]),
            np.concatenate([fold.score for fold in folds]),
        )
    metrics = ("accuracy", "auroc")
    model, count = scores[MODEL], len(scores[MODEL].subjects)
    head = [metric_label(name) for name in metrics]
    lines = [f"| | {' | '.join(head)} | accuracy: model less this |", "|---|---|---|---|"]
    record: dict[str, dict[str, list[float]]] = {}
    for name, one in scores.items():
        intervals = {metric: one.interval(metric) for metric in metrics}
        record[name] = {metric: list(interval) for metric, interval in intervals.items()}
        less = "" if one is model else str(model.difference(one, "accuracy"))
        cells = " | ".join(str(interval) for interval in intervals.values())
        lines.append(f"| {name} | {cells} | {less} |")
    text = (
        f"# Haxby et al. 2001: eight object categories, one run left out at a time\n\n"
        f"One subject, ten runs, one slice (PyMVPA's `bold_1slice`), {count} blocks, chance 0.125. "
        f"Patch size and rate\nwere chosen on the validation run of fold 1. Made by "
        f"`python paper/haxby2001.py` with\n`{' '.join(MODEL_FLAGS)}`.\n"
        f"Intervals: 95 %, bootstrap over blocks within categories; blocks of a run are not quite "
        f"independent, so they are a little narrow.\n\n" + "\n".join(lines) + "\n"
    )
    (out / "haxby2001.md").write_text(text, encoding="utf-8")
    (out / "haxby2001.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)


def run(args: argparse.Namespace) -> None:
    """Do every stage that is not finished."""
    data, out = Path(args.data), Path(args.output_dir)
    pipeline = Pipeline(out, "haxby2001_stages.json")
    prepared = Stage(name="prepare", makes=(out / "bids", out / "events.tsv"), settings=str(data))
    pipeline.do(prepared, lambda: prepare(data, out))
    store = out / "store"
    # A slice is too little for a computed mask.
    convert = (
        *("preprocess", "--input", str(out / "bids"), "--output", str(store), "--img_size", *GRID),
        *("--space", "native", "--mask", "nonzero", "--voxel_norm"),
    )

    def make_store() -> None:
        run_stage("convert", convert)
        write_splits(store)

    pipeline.do(
        Stage(name="convert", makes=(store,), settings=shown(convert), after=("prepare",)),
        make_store,
    )
    for fold in range(1, RUNS + 1):
        folder = out / f"fold_{fold}"
        train = (
            *("train", "--dataset_name", "Own", "--image_path", str(store), *MODEL_FLAGS),
            *("--events", str(out / "events.tsv"), "--train_split", "0.8", "--val_split", "0.1"),
            *("--dataset_split_num", str(fold), "--output_dir", str(folder)),
        )

        def fit(fold: int = fold, train: tuple[str, ...] = train, folder: Path = folder) -> None:
            run_stage(f"fold {fold}", train)
            run_stage(f"fold {fold}", ("report", str(folder)))

        pipeline.do(
            Stage(name=f"fold {fold}", makes=(folder,), settings=shown(train), after=("convert",)),
            fit,
        )
    collect(out)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="PyMVPA's haxby2001")
    parser.add_argument("--output_dir", default="output/haxby2001", metavar="DIR")
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
