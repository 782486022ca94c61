"""The steps of the demo: synthetic NIfTI, store, pre-training, fine-tuning, controls, page."""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.stages import Pipeline, Stage, run_stage, shown

CONFIG = Path(__file__).with_name("demo.yaml")  # the hyper-parameters of its trainings
GRID = ("30", "36", "30")
# An effect that training from scratch does not find with few labels: weak, in small regions, under
# little noise.
EFFECT, TSNR, RADIUS = 0.9, 50, 22
PRETRAIN_EPOCHS, EPOCHS, FRAMES, WORKERS = 8, 2, 40, 2
QUICK_SUBJECTS, QUICK_FRAMES = 24, 20
LABELS, DRAWS, STEPS = (4, 8, 16, 32), 3, 30  # of each class; draws of them; optimiser steps
QUICK_LABELS, QUICK_DRAWS, QUICK_STEPS = (2, 4), 2, 2
QUICK_WORKERS = 1  # what further processes import would take longer than the work
# Its layers are so small that a second thread doubles the CPU time and saves little.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
HEAD = ("--pool", "mean_sd", "--head_norm", "batch")

UNTRAINED = "Same head, untrained backbone"
SCRATCH = "Same model, from scratch"
TITLE = "NeuroMamba demo: pre-training and fine-tuning FMamba on synthetic fMRI"
NOTICE = (
    "Synthetic data. The runs were made from the MNI152 template with a planted difference between "
    "two classes, named female and male only because the task is. The figures show that the "
    "pipeline works; they say nothing about real brains."
)
CONTROLS_TEXT = (
    f"{SCRATCH}: the same training of the whole model without the pre-training.",
    f"{UNTRAINED}: the same training on the frozen features of a randomly initialised backbone. "
    f"What the fine-tuned model gains over it was learned.",
    "The planted effect leaves mean and variance of every voxel as they are, so a model of the "
    "mean volume should be at chance.",
)


class Step(NamedTuple):
    """A stage that is a command."""

    stage: Stage
    command: tuple[str, ...]


def config_copy(out: Path) -> Path:
    """The copy of ``CONFIG`` in the demo's folder, for commands as one would type them."""
    return out / CONFIG.name


def steps_of(args: argparse.Namespace) -> list[Step]:
    """The commands of the demo, in order."""
    out = Path(args.output_dir)
    nifti, store = str(out / "nifti"), str(out / "store")
    frames = QUICK_FRAMES if args.quick else FRAMES
    workers = str(QUICK_WORKERS if args.quick else WORKERS)
    config = CONFIG.read_text(encoding="utf-8")
    found: list[Step] = []

    def add(name: str, folder: str, after: tuple[str, ...], *command: str) -> None:
        makes = tuple(out / part for part in folder.split())
        stage = Stage(name=name, makes=makes, settings=shown(command) + config, after=after)
        found.append(Step(stage, command))

    add(
        *("synthetic", "nifti", (), "synthetic", "--output", nifti),
        *("--subjects", str(args.subjects), "--frames", str(frames), "--grid", *GRID),
        *("--effect_size", f"{args.effect_size:g}", "--tsnr", str(TSNR)),
        *("--network_radius", str(RADIUS)),
        *("--seed", str(args.seed), "--num_workers", workers),
    )
    add(
        *("convert", "store", ("synthetic",), "preprocess"),
        *("--input", nifti, "--output", store, "--img_size", *GRID),
        *("--dataset_name", "Dummy", "--num_workers", workers),
    )

    seed = ("--seed", str(args.seed))
    common = ("--config", str(config_copy(out)), "--image_path", store, *seed)
    shuffle = () if args.shuffle_labels is None else ("--shuffle_labels", str(args.shuffle_labels))
    task = ("--downstream_task", "sex", *shuffle)

    def train(name: str, after: tuple[str, ...], epochs: int, *flags: str) -> None:
        epochs = 1 if args.quick else epochs
        length = ("--devices", "1", "--max_epochs", str(epochs), "--output_dir", str(out / name))
        add(name, name, after, "train", *common, *length, *flags)

    backbone = str(out / "pretrain" / "checkpoints" / "best.ckpt")
    pretraining = ("--pretraining", "--use_autoregressive")
    train("pretrain", ("convert",), PRETRAIN_EPOCHS, *pretraining)
    after = ("convert", "pretrain")
    train("finetune", after, EPOCHS, *task, *HEAD, "--load_model_path", backbone)
    train("scratch", ("convert",), EPOCHS, *task, *HEAD)
    train("untrained", ("convert",), EPOCHS, *task, *HEAD, "--freeze_feature_extractor")
    labels = [str(n) for n in (QUICK_LABELS if args.quick else LABELS)]
    draws = str(QUICK_DRAWS if args.quick else DRAWS)
    steps = str(QUICK_STEPS if args.quick else STEPS)
    few = ("--labels", *labels, "--draws", draws)
    files = ("--json", str(out / "probe.json"), "--output", str(out / "probe.html"))
    read = ("--blocks", "0", "--pools", "mean", "mean_sd", *seed, "--accelerator", "cpu")
    probe = ("probe", str(out / "pretrain"), "--downstream_task", "sex", *shuffle)
    add("probe", "probe.json probe.html", after, *probe, *read, *few, *files)
    study = ("label-efficiency", *common, "--load_model_path", backbone, *task, *HEAD)
    where = ("--steps", steps, "--at_once", workers, "--output_dir", str(out / "labels"))
    add("labels", "labels", after, *study, *few, *where)
    return found


def label_copy(out: Path) -> tuple[Path, Path]:
    """The labels' file and the place where training looks for it."""
    source = out / "nifti" / "participants.csv"
    return source, out / "store" / "metadata" / source.name


def run_step(step: Step, out: Path) -> None:
    """Run the command; after the conversion, put the labels beside the store."""
    run_stage(step.stage.name, step.command, ONE_THREAD)
    if step.stage.name == "convert":
        source, target = label_copy(out)
        print(f"$ {copy_command(out)}", flush=True)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def copy_command(out: Path) -> str:
    """``label_copy`` as one would type it."""
    source, target = label_copy(out)
    folder = shlex.quote(str(target.parent))
    return f"mkdir -p {folder} && cp {shlex.quote(str(source))} {folder}/"


def write_report(out: Path, commands: Sequence[str], seconds: dict[str, float]) -> None:
    """Fit the baselines, draw the figures, write ``metrics.json`` and the page."""
    # Imported here: torch and scikit-learn take seconds, and the first stages do not need them.
    from neuromamba.training.lightning import load_lightning

    load_lightning()
    from neuromamba.common.atomic_files import write_text_atomically
    from neuromamba.evaluation.probe_rows import flat_probes, read_rows
    from neuromamba.evaluation.result_files import write_metrics
    from neuromamba.fmamba.baselines import baselines_of_data
    from neuromamba.fmamba.label_efficiency import flat_label_efficiency, read_points
    from neuromamba.fmamba.run_folder import RunFolder
    from neuromamba.pages.page import render
    from neuromamba.reports.brain_figures import kept_shares
    from neuromamba.reports.demo_report import FewLabels, ReportInput, training_report

    pretrained, finetuned, scratch, untrained = (
        RunFolder(out / name) for name in ("pretrain", "finetune", "scratch", "untrained")
    )
    rows, (points, metric) = read_rows(out / "probe.json"), read_points(out / "labels")
    start = time.monotonic()
    data = finetuned.data()
    baselines = baselines_of_data(data, finetuned.path / "baselines")
    seconds["baselines"] = time.monotonic() - start
    scores = {SCRATCH: scratch.scores(), UNTRAINED: untrained.scores()}
    scores |= {one.name: one.scores for one in baselines}
    metrics = {k: v for k, v in finetuned.metrics.items() if k.startswith(("test/", "val/"))}
    metrics |= {f"pretrain/{k}": v for k, v in pretrained.metrics.items() if k.startswith("val/")}
    for name, one in scores.items():
        key = {UNTRAINED: "untrained", SCRATCH: "scratch"}.get(name, name.replace(" ", "_"))
        metrics |= {f"control/{key}/{k}": v for k, v in one.metrics().items()}
    metrics |= flat_probes(rows) | flat_label_efficiency(points, metric)
    per_class = finetuned.scores().per_class
    metrics |= {f"test/subjects_class_{i}": float(n) for i, n in enumerate(per_class)}
    paths = [path for store in data.stores for path in store.paths]
    metrics["kept_tokens"] = float(kept_shares(paths, finetuned.model_config).mean())
    metrics["model/parameters"] = finetuned.metrics["model/parameters"]

    train, val, test = (sum(map(len, data.subjects[part])) for part in ("train", "val", "test"))
    given = ReportInput(
        pretrained=pretrained,
        finetuned=finetuned,
        controls=scores,
        few_labels=FewLabels(points=points, rows=rows, metric=metric),
        title=TITLE,
        summary=(
            f"FMamba, the NeuroMamba backbone, was pre-trained by next-token prediction on the "
            f"synthetic runs of {train} subjects, without labels. It was then fine-tuned to "
            f"distinguish two planted classes: on few labelled subjects, many times, and on all "
            f"{train}, while {val} others chose the epochs. Every model here was tested on the "
            f"same {test} subjects that no step had seen.",
        ),
        notice=NOTICE,
        controls_text=(*CONTROLS_TEXT, *(f"{one.name}: {one.text}" for one in baselines)),
        commands=commands,
        seconds=seconds,
    )
    page = training_report(given, out / "figures")
    metrics |= {f"seconds/{name}": value for name, value in seconds.items()}
    metrics["seconds/total"] = sum(seconds.values())
    write_text_atomically(out / "report.html", render(page))
    write_metrics(metrics, out / "metrics.json")


def results_table(out: Path) -> str:
    """What few labels are worth, the model beside the controls, and where the report is."""
    from neuromamba.fmamba.label_efficiency import lines_of, read_points
    from neuromamba.fmamba.run_folder import RunFolder
    from neuromamba.reports.demo_report import MODEL

    metrics = RunFolder(out).metrics
    controls = dict.fromkeys(k.rsplit("/", 1)[0] for k in metrics if k.startswith("control/"))
    rows = [(MODEL, "test"), *((k.split("/")[1].replace("_", " "), k) for k in controls)]
    width = max(len(label) for label, _ in rows)
    lines = lines_of(*read_points(out / "labels"))
    lines += ["", f"{'all labels':<{width}}  {'AUROC':>7}  {'accuracy':>8}  balanced accuracy"]
    for label, key in rows:
        auroc, share, balanced = (
            metrics[f"{key}/{name}"] for name in ("auroc", "accuracy", "balanced_accuracy")
        )
        lines.append(f"{label:<{width}}  {auroc:>7.3f}  {share:>8.3f}  {balanced:>17.3f}")
    zero, one = (int(metrics[f"test/subjects_class_{i}"]) for i in (0, 1))
    lines += [f"{zero + one} held-out synthetic subjects, {zero} and {one} of the two classes."]
    return "\n".join([*lines, "", f"report: {out / 'report.html'}"])


def run_demo(args: argparse.Namespace) -> None:
    """Do every stage that is not finished, and print the table of results.

    Raises:
        UserInputError: a flag that cannot be right.
        StageFailure: a stage ended with an error.
    """
    out = Path(args.output_dir)
    pipeline = Pipeline(out, "demo.json")
    config_copy(out).write_bytes(CONFIG.read_bytes())
    steps = steps_of(args)
    commands = []
    for step in steps:
        pipeline.do(step.stage, lambda step=step: run_step(step, out))  # type: ignore[misc]
        commands.append(shown(step.command))
        if step.stage.name == "convert":
            commands.append(copy_command(out))
    made = tuple(out / name for name in ("report.html", "metrics.json", "figures"))
    names = [step.stage.name for step in steps]
    stage = Stage(name="report", makes=made, settings="", after=tuple(names))
    pipeline.do(stage, lambda: write_report(out, commands, pipeline.seconds(names)))
    print(results_table(out), flush=True)
