"""One call of ``tester.py``: data, protocol, baselines, report, explanation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.batches import check_lengths
from neuromamba.data.regions.dataset import Cohort, load_cohort
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.layers.ssd import select_backend
from neuromamba.neurossm.classifiers import NetworkClassifier, classifier
from neuromamba.neurossm.model import NeuroSSMConfig
from neuromamba.neurossm.module import FitConfig
from neuromamba.neurossm.protocol import Protocol
from neuromamba.neurossm.report import summary_text, write_report
from neuromamba.neurossm.results import FitResult
from neuromamba.training.launch import prepare
from neuromamba.training.strategies import Hardware, resolve_hardware


def hardware_of(device: str) -> Hardware:
    """``--device``: ``cpu``, or the number of a GPU.

    Raises:
        UserInputError: neither, or this machine has no such GPU.
    """
    if device == "cpu":
        return resolve_hardware({"accelerator": "cpu", "devices": 1})
    if not device.isdecimal():
        raise UserInputError(f"--device: got '{device}', expected cpu or the number of a GPU.")
    hardware = resolve_hardware({"accelerator": "gpu", "devices": f"{device},"})
    present = getattr(torch, hardware.accelerator).device_count()
    if hardware.missing or int(device) >= present:
        raise UserInputError(
            f"--device {device}: torch finds no such GPU here. Use --device cpu, or run where "
            f"there is one."
        )
    return hardware


def model_config(args: argparse.Namespace, cohort: Cohort) -> NeuroSSMConfig:
    """The architecture flags."""
    return NeuroSSMConfig(
        rois=cohort.rois,
        classes=len(cohort.details.classes),
        signals=tuple(args.signals),
        scales=tuple(args.scales),
        embed_dim=args.embed_dim,
        depth=args.depth,
        dropout=args.dropout,
        ssd_backend=args.ssd_backend,
    )


def fit_config(args: argparse.Namespace, details: DatasetDetails) -> FitConfig:
    """The training flags, with the data set's defaults.

    Raises:
        UserInputError: a number that trains nothing.
    """
    fit = FitConfig(
        crop=details.dynamic_length if args.dynamic_length is None else args.dynamic_length,
        epochs=details.epochs if args.epochs is None else args.epochs,
        batch_size=details.batch_size if args.batch_size is None else args.batch_size,
        eval_batch_size=details.eval_batch_size,
        learning_rate=args.learning_rate,
        max_learning_rate=args.max_learning_rate,
    )
    for flag in ("epochs", "batch_size"):
        if getattr(fit, flag) < 1:
            raise UserInputError(f"--{flag}: got {getattr(fit, flag)}, expected 1 or more.")
    if not fit.min_learning_rate < fit.learning_rate <= fit.max_learning_rate:
        raise UserInputError(
            f"--learning_rate: got {fit.learning_rate:g}, expected more than "
            f"{fit.min_learning_rate:g}, where the cycle ends, and at most --max_learning_rate "
            f"{fit.max_learning_rate:g}."
        )
    return fit


def evaluate(args: argparse.Namespace, details: DatasetDetails) -> None:
    """Do what the flags of ``tester.py`` say.

    Raises:
        UserInputError: anything the user can mend.
    """
    hardware = hardware_of(args.device)
    prepare(1, 1)  # refuses several processes, which would all do the same
    if args.folds < 2:
        raise UserInputError(f"--folds: got {args.folds}, expected 2 or more.")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise UserInputError(f"--seeds: got {args.seeds}, expected different numbers from 0 on.")
    cohort = load_cohort(
        args.dataset,
        details,
        Path(args.data_dir),
        Path(args.data_file) if args.data_file else None,
        args.group_column,
        args.drop_bad_scans,
    )
    model, fit = model_config(args, cohort), fit_config(args, details)
    short = check_lengths(cohort, fit.crop, model.shortest, args.short_scans)
    main = classifier(args.model, model, fit, hardware)
    if isinstance(main, NetworkClassifier):
        select_backend(args.ssd_backend, main.device)  # refuse before anything is written
    protocol = Protocol(
        cohort,
        tuple(args.seeds),
        args.folds,
        not args.skip_cross_validation,
        Path(args.results_dir) / cohort.name,
    )
    protocol.splits()  # refuse too few subjects as early
    if args.analysis:
        assert isinstance(main, NetworkClassifier)
        # Imported here: pictures of brains need nilearn, which takes seconds to load.
        from neuromamba.neurossm.explain import explain_holdouts, plan

        explanation = plan(protocol, vars(args))
    print(_opening_lines(cohort, args, hardware, fit.crop, short), flush=True)
    results: dict[str, Sequence[FitResult]] = {main.name: protocol.run(main)}
    for name in args.baselines:
        if name != main.name:
            results[name] = protocol.run(classifier(name, model, fit, hardware))
    print(summary_text(results))
    page = write_report(protocol.folder(main), cohort, results, vars(args))
    print(f"results in {protocol.folder(main)}, report {page}", flush=True)
    if args.analysis:
        assert isinstance(main, NetworkClassifier)
        explain_holdouts(protocol, main, explanation)


def _opening_lines(
    cohort: Cohort, args: argparse.Namespace, hardware: Hardware, crop: int, short: int
) -> str:
    details, scans = cohort.details, cohort.scans
    frames = [scan.series.shape[1] for scan in scans]
    subjects = len({scan.subject for scan in scans})
    counts = ", ".join(
        f"{name} {int((cohort.labels == label).sum())}"
        for label, name in enumerate(details.classes)
    )
    lines = [
        f"{cohort.name}: {len(scans)} scans of {subjects} subjects, {cohort.rois} regions, "
        f"{min(frames)} to {max(frames)} frames; {details.target}: {counts}",
        f"split by {args.group_column or 'subject'}; seeds {args.seeds}; "
        + ("holdout only" if args.skip_cross_validation else f"{args.folds} folds and holdout")
        + f"; crops of {crop} frames; on {hardware.accelerator}",
    ]
    if short:
        lines.append(f"note: {short} scans are shorter than a crop and are taken whole.")
    return "\n".join([*lines, *(f"note: {note}" for note in cohort.notes)])
