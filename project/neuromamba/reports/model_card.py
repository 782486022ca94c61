"""The model card of an exported folder: README.md, as the Hugging Face hub reads it.

It is made from ``config.json`` alone, so it holds no more than the file: numbers of subjects, no
names and no paths. Sections follow Mitchell et al. (2019, FAT*, "Model Cards for Model Reporting").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neuromamba.checkpoints.io import CHECKPOINT_KEY, EXPORT_KEY
from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.json_text import read_json_record
from neuromamba.config.serialise import from_dict
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.config.training import DownstreamConfig, PretrainConfig
from neuromamba.evaluation.intervals import CONFIDENCE
from neuromamba.evaluation.result_files import metrics_from
from neuromamba.fmamba.export_request import FOLDER_CARD, FOLDER_METADATA
from neuromamba.inference.calibration import (
    CALIBRATION_KEY,
    COVERAGE,
    EVALUATION_KEY,
    calibration_of,
)
from neuromamba.inference.contract import InputContract
from neuromamba.inference.sharing import BASELINES_KEY
from neuromamba.reports.card_parts import (
    FOLDER,
    NOT_COMPARED,
    STATE_SPACE,
    SYNTHETIC,
    TRANSFORMER,
    bullets,
    calibration_errors,
    how_to_use,
    hub_head,
    licence,
    results,
    section,
    table,
)
from neuromamba.reports.citations import FMAMBA, SWIFT
from neuromamba.reports.skill_text import skill_text

_FEW = 20  # test subjects


def write_model_card(folder: Path, license_id: str | None) -> Path:
    """Write README.md of an exported folder; returns its path.

    Args:
        folder: with ``config.json``.
        license_id: of the model; None: the text says that none is stated.
    """
    record = read_json_record(folder / FOLDER_METADATA, "Export the model again.")
    path = folder / FOLDER_CARD
    text = model_card(folder.resolve().name, record[CHECKPOINT_KEY], record[EXPORT_KEY], license_id)
    write_text_atomically(path, text)
    return path


def model_card(
    name: str, metadata: Mapping[str, Any], export: Mapping[str, Any], license_id: str | None
) -> str:
    """Return the model card as Markdown, with the hub's head in YAML.

    Args:
        name: of the model.
        metadata: of the checkpoint.
        export: what the exported file says of its origin, calibration and evaluation.
        license_id: of the model; None: the text says that none is stated.
    """
    contract = InputContract.from_metadata(metadata, name)
    task = None
    if "downstream" in metadata:
        task = from_dict(DownstreamConfig, metadata["downstream"], name)
    evaluation = export.get(EVALUATION_KEY, {})
    swift = contract.model.model == "swift"
    parts = [
        _hub_head(metadata, task, evaluation, license_id, swift),
        f"# {name}",
        _summary(metadata, contract, task),
        *section("Intended use", _use(task)),
        *section("Training data", _training_data(metadata, task)),
        *section("What it expects of a scan", [table(contract.describe()), _EXPECTS]),
        *section("Evaluation", _evaluation(export, task)),
        *section("Limits", [bullets([*_limits(metadata, export, contract, task)])]),
        *section("How to use it", _how_to_use(task)),
        *section("Licence", [licence(license_id)]),
        *section(
            "How to cite", ["The architecture:", f"```bibtex\n{SWIFT if swift else FMAMBA}\n```"]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _hub_head(
    metadata: Mapping[str, Any],
    task: DownstreamConfig | None,
    evaluation: Mapping[str, Any],
    license_id: str | None,
    swift: bool,
) -> str:
    return hub_head(
        "feature-extraction" if task is None else task.task_type,
        metadata["data"]["config"].get("dataset_name", ()),
        evaluation.get("metrics", {}),
        license_id,
        TRANSFORMER if swift else STATE_SPACE,
    )


def _summary(
    metadata: Mapping[str, Any], contract: InputContract, task: DownstreamConfig | None
) -> str:
    model = contract.model
    origin = {"fmamba": "the backbone of NeuroMamba", "swift": "Kim, Kwon, Yoon et al. 2023"}
    blocks = model.description.removeprefix(f"{model.display_name}, ")
    what = f"{model.display_name} ({origin[model.model]}), {blocks}, for whole-brain functional MRI"
    if task is None:
        objective = "pre-training"
        if "pretrain" in metadata:
            pretrain = from_dict(PretrainConfig, metadata["pretrain"], "model")
            objective = f"pre-training ({pretrain.description})"
        return f"{what}. A backbone after {objective}, without a head: it embeds scans."
    if task.task_type == "regression":
        unit = f" in {task.unit}" if task.unit else ""
        return f"{what}. It predicts {task.task}{unit}."
    return f"{what}. It classifies {task.task}: {', '.join(task.class_names)}."


def _use(task: DownstreamConfig | None) -> list[str]:
    what = (
        "Features of scans for statistical analyses, and as a start for fine-tuning"
        if task is None
        else f"Studies of how well {task.task} can be predicted from fMRI, comparisons of models"
    )
    return [
        f"Research. {what}. It is no medical device: it is not meant for diagnosis, for decisions "
        f"about single persons, or for finding out what a person has not consented to disclose.",
    ]


def _training_data(metadata: Mapping[str, Any], task: DownstreamConfig | None) -> list[str]:
    data = metadata["data"]
    config = data["config"]
    subjects, windows = data.get("subjects", {}), data.get("windows", {})
    names = ", ".join(dict.fromkeys(config.get("dataset_name", ())))
    rows = [("data set", names or "not recorded")]
    for part, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        if part in subjects:
            split = config.get("group_by", "subject")
            rows.append((label, f"{subjects[part]} {split}s, {windows.get(part, 0):,} windows"))
    rows.append(("space", ", ".join(data.get("spaces", ())) or "not recorded"))
    times = [f"{tr:g}" for tr in data.get("tr", ()) if math.isfinite(tr)]
    rows.append(("repetition time", f"{', '.join(times)} s" if times else "not recorded"))
    rows.append(("scaling", data["scaling"]))
    text = [table(rows)]
    if SYNTHETIC in config.get("dataset_name", ()):
        text.append("If these are the data of `make demo`, they are synthetic, not of people.")
    if task is not None and task.shuffle_labels is not None:
        text.append("**The labels were shuffled over subjects: this is a negative control.**")
    return text


_EXPECTS = (
    "`neuromamba check` says whether a scan fits; `neuromamba predict` and `embed` bring it to "
    "this (axes, grid, repetition time, scaling), and list what was done."
)


def _evaluation(export: Mapping[str, Any], task: DownstreamConfig | None) -> list[str]:
    if task is None:
        metrics = export.get("metrics", {})
        if "val/loss" not in metrics:
            return ["No results of the pre-training are recorded with these weights."]
        return [
            f"Loss of the validation subjects {metrics_from(metrics)['val/loss']:.4g}. "
            f"{skill_text(metrics_from(metrics))}"
        ]
    found = export.get(EVALUATION_KEY, {})
    if not found.get("metrics"):
        return ["No test of these weights is recorded, so nothing is known about their errors."]
    main = TASK_TYPES[task.task_type].main_metric
    without = (
        f"No baselines were fitted on these subjects (`neuromamba report` of the run fits them), "
        f"{NOT_COMPARED}"
    )
    return [
        f"On {found.get('subjects', 'an unknown number of')} held-out test subjects of the same "
        f"data, with {found.get('confidence', CONFIDENCE):.0%} bootstrap intervals over subjects:",
        *results(found["metrics"], found.get(BASELINES_KEY, ()), main, without),
        _calibration(export, task, found.get("calibration", {})),
    ]


def _calibration(
    export: Mapping[str, Any], task: DownstreamConfig, measured: Mapping[str, Any]
) -> str:
    known = calibration_of(Path(), export) if CALIBRATION_KEY in export else None
    shown = calibration_errors(measured)
    if known is not None and known.half_width is not None:
        return (
            f"{shown}{COVERAGE:.0%} prediction interval: the value ± {known.half_width:.3g}"
            f"{f' {task.unit}' if task.unit else ''}, by split conformal prediction from "
            f"{known.subjects} validation subjects; it holds for new people of the same population."
        )
    if known is not None and known.power is not None:
        return (
            f"{shown}Calibrated probabilities: one temperature, {1 / known.power:.2f}, fitted to "
            f"{known.subjects} validation subjects of the same population."
        )
    return (
        f"{shown}No calibration: there are too few validation subjects, the model gets none of "
        f"them wrong, or their predictions are not recorded."
    )


def _limits(
    metadata: Mapping[str, Any],
    export: Mapping[str, Any],
    contract: InputContract,
    task: DownstreamConfig | None,
) -> Iterator[str]:
    yield "Research only; no validation for clinical use."
    yield (
        "Age, sex, health, origin and scanner of the training subjects are not recorded in the "
        "model. For other populations, scanners, protocols and preprocessing its output may be "
        "wrong without looking wrong."
    )
    if contract.inputs:
        yield (
            "`in_range` compares a scan with measures of up to 24 training runs. A scan out of "
            "range is unlike the training; one in range may still be of another population."
        )
    else:
        yield "It does not record what its training scans looked like, so `in_range` stays empty."
    tested = export.get(EVALUATION_KEY, {}).get("subjects")
    if isinstance(tested, int) and tested < _FEW:
        yield f"With {tested} test subjects the results decide nothing about its quality."
    if task is not None:
        yield (
            "The intervals are over the test subjects of one split and one training, and do not "
            "contain the variation between trainings."
        )
    if contract.knows_training:
        yield (
            "**It holds keys of its training subjects** (hashes without a secret, exported with "
            "`--keep_subject_keys`): anybody with a list of names can find out who took part. "
            "Do not publish this file."
        )
    else:
        yield (
            "It holds no keys of its training subjects. So NeuroMamba cannot recognise people it "
            "was trained on, and its guard against testing on training subjects is lost: test it "
            "on people who certainly were not among them."
        )
    if contract.inputs.get("mean"):
        yield (
            "It holds the mean image of its training runs in steps of one patch, and ranges of "
            "their measures, but no image of a single person"
            + (" unless it was trained on one run." if contract.inputs.get("runs") == 1 else ".")
        )
    if export.get("dtype") == "bf16":
        yield "Weights are rounded to bfloat16; the results above are of the weights before that."
    if metadata.get("code_version"):
        yield f"Trained with NeuroMamba {metadata['code_version']}."


def _how_to_use(task: DownstreamConfig | None) -> list[str]:
    verb = "embed" if task is None else "predict"
    result = "print(scan.problems, scan.in_range)"
    shell = [
        f"hf download ORGANISATION/NAME --local-dir {FOLDER}  # or copy the folder",
        f"neuromamba check {FOLDER} sub-01_task-rest_bold.nii.gz",
        f"neuromamba {verb} {FOLDER} sub-01_task-rest_bold.nii.gz -o OUT",
    ]
    last = (
        'model.embed(scan).to_parquet("embedding.parquet")'
        if task is None
        else "print(model.predict(scan))"
    )
    python = [
        "import neuromamba",
        f'model = neuromamba.load("{FOLDER}")',
        'scan = model.prepare("sub-01_task-rest_bold.nii.gz")',
        result,
        last,
    ]
    return how_to_use(shell, python)
