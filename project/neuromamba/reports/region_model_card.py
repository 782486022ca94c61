"""The model card of an exported NeuroSSM: README.md, as the Hugging Face hub reads it.

It is made from the metadata of the model file alone, which name no subject and no folder. Sections
follow Mitchell et al. (2019, FAT*, "Model Cards for Model Reporting").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neuromamba.config.tasks import TASK_TYPES
from neuromamba.evaluation.intervals import CONFIDENCE
from neuromamba.inference.region_model import RegionContract
from neuromamba.neurossm.model_file import MEANS
from neuromamba.neurossm.results import baseline_text
from neuromamba.reports.card_parts import (
    FOLDER,
    NOT_COMPARED,
    bullets,
    calibration_errors,
    how_to_use,
    hub_head,
    licence,
    results,
    section,
    table,
)
from neuromamba.reports.citations import NEUROSSM

_PAPER = "https://arxiv.org/abs/2601.01229"
_FEW = 20  # test subjects


def region_model_card(name: str, metadata: Mapping[str, Any], license_id: str | None) -> str:
    """Return the model card as Markdown, with the hub's head in YAML.

    Args:
        name: of the model.
        metadata: of the model file, see ``neurossm.model_file``.
        license_id: of the model; None: the text says that none is stated.
    """
    contract, found = RegionContract(metadata), metadata["evaluation"]
    kind = _task_type(metadata)
    parts = [
        hub_head(kind, [metadata["dataset"]], found.get("metrics", {}), license_id),
        f"# {name}",
        _summary(metadata),
        *section(
            "Intended use",
            [
                f"Research. Studies of how well {metadata['target']} can be predicted from fMRI, "
                f"comparisons of models. It is no medical device: it is not meant for diagnosis, "
                f"for decisions about single persons, or for finding out what a person has not "
                f"consented to disclose."
            ],
        ),
        *section("Training data", [table(_training(metadata))]),
        *section("What it expects of a scan", [table(contract.describe()), _EXPECTS]),
        *section("Evaluation", _evaluation(found, kind)),
        *section("Limits", [bullets([*_limits(metadata)])]),
        *section("How to use it", _how_to_use()),
        *section("Licence", [licence(license_id)]),
        *section("How to cite", ["The architecture:", f"```bibtex\n{NEUROSSM}\n```"]),
    ]
    return "\n\n".join(parts) + "\n"


_EXPECTS = (
    "A scan is a table of series (CSV, TSV, .1D, .npy, Parquet), or a 4D NIfTI file with "
    "`--atlas`. `neuromamba check` says whether it fits; regions that the file names are put into "
    "the model's order."
)


def _summary(metadata: Mapping[str, Any]) -> str:
    model, name = metadata["model"], metadata["name"]
    what = f"{name}, for time series of {model['rois']} brain regions"
    if name == "NeuroSSM":
        pathways = len(model["signals"]) * len(model["scales"])
        layers = f"{model['depth']} Mamba2 layer{'' if model['depth'] == 1 else 's'}"
        ways = f"{pathways} pathway{'' if pathways == 1 else 's'}"
        what += f": {ways} of {layers} of width {model['embed_dim']}"
        if model.get("members", 1) > 1:
            what += f", {model['members']} times with other weights, averaged"
        if model.get("second_order", False):
            what += (
                ", and a second-order pathway, which is the linear model of correlations that is "
                "called Tangent in the table of baselines: what the model gains over Tangent is "
                "what the other pathways add"
            )
            if (share := metadata.get("first_order_share")) is not None:
                what += f" (a share of {share:g} of their logits, chosen on training scans)"
    if not metadata["classes"]:
        unit = f" in {metadata['unit']}" if metadata["unit"] else ""
        return f"{what}. It predicts the value of {metadata['target']}{unit}."
    classes = ", ".join(metadata["classes"])
    return f"{what}. It classifies {metadata['target']}: {classes}."


def _task_type(metadata: Mapping[str, Any]) -> str:
    return "classification" if metadata["classes"] else "regression"


def _training(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = metadata["training"]
    return [
        ("data set", metadata["dataset"]),
        ("training", f"{known['subjects']} subjects, {known['scans']} scans"),
        ("crop", f"{metadata['crop']} frames"),
        ("seed of split and fit", str(metadata["seed"])),
    ]


def _evaluation(found: Mapping[str, Any], kind: str) -> list[str]:
    main = TASK_TYPES[kind].main_metric
    if not found.get("metrics"):
        return ["No test of these weights is recorded, so nothing is known about their errors."]
    differences, own = found.get("differences", {}), found.get("baselines", {})
    baselines = [
        {
            "name": name,
            "text": baseline_text(name, kind),
            "metrics": own.get(name, {}),  # none in files from before they were kept
            "difference": of[main],
        }
        for name, of in differences.items()
        if main in of
    ]
    without = f"No baselines were fitted on these subjects, {NOT_COMPARED}"
    return [
        f"On the {found['subjects']} subjects of the holdout, from the same data, with "
        f"{found.get('confidence', CONFIDENCE):.0%} bootstrap intervals over subjects:",
        *results(found["metrics"], baselines, main, without),
        f"{calibration_errors(found.get('calibration', {}))}It was trained without validation "
        f"subjects, so "
        + (
            "its probabilities are not calibrated."
            if kind == "classification"
            else "no interval is known for a single prediction."
        ),
    ]


def _limits(metadata: Mapping[str, Any]) -> Iterator[str]:
    yield "Research only; no validation for clinical use."
    yield (
        "Age, sex, health, origin and scanner of the training subjects are not recorded in the "
        "model. For other populations, scanners, protocols and preprocessing its output may be "
        "wrong without looking wrong."
    )
    yield (
        f"`in_range` compares a scan with measures of {metadata['training']['measured']} training "
        f"scans. A scan out of range is unlike the training; one in range may still be of another "
        f"population."
    )
    tested = metadata["evaluation"].get("subjects")
    if isinstance(tested, int) and tested < _FEW:
        yield f"With {tested} test subjects the results decide nothing about its quality."
    yield (
        "The intervals are over the test subjects of one split and one training, and do not "
        "contain the variation between trainings."
    )
    if metadata["regions"] is None:
        yield "It does not name its regions, so only their number can be checked."
    yield (
        "It holds no names or keys of its training subjects. So NeuroMamba cannot recognise people "
        "it was trained on: test it on people who certainly were not among them."
    )
    if metadata["training"].get(MEANS) is not None:
        yield (
            "It holds means of its features and ranges of measures over the training scans, but no "
            "series of a single person"
            + (" unless it was trained on one." if metadata["training"]["scans"] == 1 else ".")
        )
    if metadata.get("code_version"):
        yield f"Trained with NeuroMamba {metadata['code_version']}."


def _how_to_use() -> list[str]:
    shell = [
        f"hf download ORGANISATION/NAME --local-dir {FOLDER}  # or copy the folder",
        f"neuromamba check {FOLDER} sub-01_series.csv",
        f"neuromamba predict {FOLDER} sub-01_series.csv -o OUT",
    ]
    python = [
        "import neuromamba",
        f'model = neuromamba.load("{FOLDER}")',
        'scan = model.prepare("sub-01_series.csv")',
        "print(scan.problems, scan.in_range)",
        "print(model.predict(scan))",
    ]
    return how_to_use(shell, python, _PAPER)
