"""One evaluation (``tester.py``): data, protocol, baselines, holdouts, report, explanation."""

from __future__ import annotations

import torch

from neuromamba.common.atomic_files import make_folder
from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.data.regions.batches import check_lengths
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.external import load_external
from neuromamba.data.regions.holdout import (
    EXTERNAL,
    HOLDOUT,
    HOLDOUT_NAME,
    rare_strata,
    rare_values,
)
from neuromamba.layers.ssd import select_backend
from neuromamba.neurossm.classifiers import Classifier, NetworkClassifier, classifier
from neuromamba.neurossm.comparison import compare_splits, write_comparison
from neuromamba.neurossm.comparison import lines as comparison_lines
from neuromamba.neurossm.config import EvaluateConfig
from neuromamba.neurossm.holdouts import check_holdouts, evaluate_holdouts
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.model_file_writer import write_model_files
from neuromamba.neurossm.other_baselines import shared_of
from neuromamba.neurossm.protocol import Protocol
from neuromamba.neurossm.report import write_report
from neuromamba.neurossm.report_results import summary_text
from neuromamba.neurossm.results import Results
from neuromamba.training.launch import prepare
from neuromamba.training.strategies import Hardware, resolve_hardware


def hardware_of(device: str) -> Hardware:
    """The hardware of ``--device``: ``cpu``, or the number of a GPU.

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


def evaluate(config: EvaluateConfig) -> None:
    """Run the protocol with the model and its baselines, evaluate the holdouts, explain them.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    hardware = hardware_of(config.device)
    prepare(1, 1)  # refuses several processes, which would all do the same
    cohort = load_cohort(
        config.dataset,
        config.details,
        config.data_dir,
        data_file=config.data_file,
        group_column=config.group_column,
        confounds=config.confounds,
        drop_bad_scans=config.drop_bad_scans,
        missing_codes=config.missing_codes,
        orientation=config.orientation,
        keep=config.keep,
    )
    external = None
    if config.test_data is not None:
        external = load_external(
            cohort,
            config.test_data,
            config.data_file or config.data_dir / config.details.file,
            drop_bad_scans=config.drop_bad_scans,
            missing_codes=config.missing_codes,
            orientation=config.orientation,
            keep=config.keep,
        )
    network = config.network(rois=cohort.rois, classes=len(cohort.details.classes) or 1)
    short = check_lengths(
        cohort, config.fit.crop, network.shortest, refuse=config.refuse_short_scans
    )
    shared = shared_of(cohort, external, config.confounds, config.harmonise)
    classifiers = [
        classifier(name, network, config.fit, hardware, shared) for name in config.models
    ]
    main = classifiers[0]
    if isinstance(main, NetworkClassifier):
        select_backend(network.ssd_backend, main.device)  # refuse before anything is written
    protocol = Protocol(
        cohort=cohort,
        seeds=config.seeds,
        folds=config.folds,
        cross_validation=config.cross_validation,
        results=config.results_dir / cohort.name,
        stratify_by=config.stratify_by,
        leave_out=config.leave_out,
        external=external,
    )
    check_holdouts(cohort, protocol.splits())  # refuse too few subjects as early
    if config.explanation is not None:
        assert isinstance(main, NetworkClassifier)
        # Imported here: pictures of brains need nilearn, which takes seconds to load.
        from neuromamba.neurossm.explain import explain_holdouts, plan

        explanation = plan(protocol, config.explanation, config.data_dir)
    print(_opening_lines(cohort, external, config, hardware, short), flush=True)
    results: Results = {one.name: protocol.run(one) for one in classifiers}
    print(summary_text(results))
    found = evaluate_holdouts(cohort, protocol.splits(), results)
    folder = protocol.folder(main)
    found.write(folder)
    reports = [found]
    if external is not None:
        other = evaluate_holdouts(external, protocol.splits(), results, EXTERNAL)
        make_folder(folder / EXTERNAL, "--results_dir")
        other.write(folder / EXTERNAL)
        reports.append(other)
    if isinstance(main, NetworkClassifier):
        written = write_model_files(config, protocol, main, found)
        print("\n".join(f"model of the holdout: {path}" for path in written))
    print("\n".join(line for report in reports for line in report.lines()))
    compared = compare_splits(results)
    write_comparison(compared, folder)
    print("\n".join(comparison_lines(compared, main.name)))
    shares = _first_order_shares(protocol, main)
    page = write_report(folder, cohort, results, reports, compared, config.flags, shares)
    print(f"results in {folder}, report {page}", flush=True)
    if config.explanation is not None:
        assert isinstance(main, NetworkClassifier)
        explain_holdouts(protocol, main, explanation)


def _first_order_shares(protocol: Protocol, main: Classifier) -> dict[int, float]:
    """Seed -> share of the first-order logits, of the holdouts' models that have one."""
    found = {}
    if isinstance(main, NetworkClassifier) and main.model.second_order:
        for seed in protocol.seeds:
            model = main.load(protocol.folder(main) / f"seed_{seed}" / HOLDOUT_NAME)
            if isinstance(model, NeuroSSM) and model.first_order_share is not None:
                found[seed] = model.first_order_share
    return found


def _opening_lines(
    cohort: Cohort,
    external: Cohort | None,
    config: EvaluateConfig,
    hardware: Hardware,
    short: int,
) -> str:
    details, scans = cohort.details, cohort.scans
    frames = [scan.series.shape[1] for scan in scans]
    subjects = len({scan.subject for scan in scans})
    counts = ", ".join(
        f"{name} {int((cohort.labels == label).sum())}"
        for label, name in enumerate(details.classes)
    )
    if details.is_regression:
        counts = f"{cohort.labels.min():.4g} to {cohort.labels.max():.4g} {details.unit}".rstrip()
    splits = f"{config.folds} folds and holdout" if config.cross_validation else "holdout only"
    if config.leave_out is not None:
        splits = f"each {config.leave_out} left out, and holdout"
    if config.stratify_by:
        splits += f", stratified by {details.target} and {', '.join(config.stratify_by)}"
    lines = [
        f"{cohort.name}: {len(scans)} scans of {subjects} subjects, {cohort.rois} regions, "
        f"{min(frames)} to {max(frames)} frames; {details.target}: {counts}",
        f"split by {config.group_column or 'subject'}; seeds {list(config.seeds)}; {splits}; "
        f"crops of {config.fit.crop} frames; on {hardware.accelerator}",
    ]
    if short:
        lines.append(f"note: {short} scans are shorter than a crop and are used completely.")
    lines += [f"note: {note}" for note in (*cohort.notes, *_of_columns(cohort, config))]
    if external is not None:
        lines.append(
            f"external cohort '{config.test_data}': {len(external.scans)} scans, which the models "
            f"of the holdouts are tested on"
        )
        lines += [f"note: external cohort: {note}" for note in external.notes]
    return "\n".join(lines)


def _of_columns(cohort: Cohort, config: EvaluateConfig) -> list[str]:
    """What a user should know of the columns that splits are made by."""
    notes = []
    for name in config.stratify_by:
        absent = int((cohort.column(name, "--stratify_by") == "").sum())
        if absent:
            notes.append(f"--stratify_by {name}: {absent} scans without a value count as a group.")
    if config.stratify_by and (few := rare_strata(cohort, config.stratify_by)):
        notes.append(
            f"--stratify_by: {few} combinations of {cohort.details.target} and "
            f"{', '.join(config.stratify_by)} have fewer than {HOLDOUT} subjects; those of a class "
            f"are spread over the parts together."
        )
    if config.leave_out is not None:
        rare = rare_values(cohort, config.leave_out)
        if rare:
            lack = "have too few subjects" if cohort.details.is_regression else "lack a class"
            notes.append(
                f"--leave_out {config.leave_out}: {len(rare)} values {lack}, are never tested, and "
                f"stay in training ({some_of(rare)})."
            )
    return notes
