"""Train, test and explain NeuroSSM on time series of regions: of classes, or of values such as age.

    neuromamba regions train --dataset HCP_REST --model NeuroSSM --device cpu

Per seed a fifth of the subjects is held out and the rest cross-validated; then the model is fitted
on all of the rest and scored on the holdout. Results go to Results/<DATASET>/<MODEL>/; a run that
was interrupted continues when it is started again. docs/region_data.md describes the data,
docs/region_protocol.md protocol and files.

Exit status: 0; 2 if a flag or a file is wrong; 75 after SIGTERM, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import PATHWAY_ABLATIONS, ROI_ORIENTATIONS, SSD_BACKENDS
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.data.regions.registry import NAMES as DATASET_NAMES
from neuromamba.data.regions.registry import OWN, details_of
from neuromamba.neurossm.config import (
    RECIPES,
    CPAConfig,
    EvaluateConfig,
    Explanation,
    FitConfig,
)

MODELS = (
    "NeuroSSM",
    "GRU",
    "FC",
    "PartialCorrelation",
    "Tangent",
    "MeanVariance",
    "Untrained",
    "Confounds",
    "MLP",
)
BASELINES = ("FC", "Tangent", "MeanVariance", "Untrained")
GRADIENTS = ("integrated", "single")
_ARCHITECTURE = ("embed_dim", "depth", "dropout", "region_dropout", "members")
_TRAINING = ("learning_rate", "max_learning_rate", "weight_decay", "label_smoothing")


def _default(flag: str) -> str:
    """``default: 128 (paper), 32 (robust)``."""
    found = []
    for name, values in RECIPES.items():
        value = values[flag]
        words = map(str, value if isinstance(value, tuple) else [value])
        found.append(f"{' '.join(words)} ({name})")
    return f"default: {', '.join(found)}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions train",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help=", ".join(DATASET_NAMES))
    add("--model", default="NeuroSSM", metavar="NAME", help=", ".join(MODELS))
    add("--device", default="0", help="number of a GPU, or cpu (default: %(default)s)")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="S",
        help="of the holdouts: a split and a model for each",
    )
    add("--skip_cross_validation", action="store_true", help="holdouts only, no folds")
    add(
        "--analysis",
        action="store_true",
        help="write attribution maps (CPA) of the holdouts' scans",
    )

    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--data_dir", default="Dataset/Data", metavar="DIR", help="folder of the data sets")
    add(
        "--data_file",
        metavar="FILE",
        help="scans, in place of the data set's file: .pickle, .npy, .csv, .tsv or a folder",
    )
    add(
        "--test_data",
        metavar="FILE",
        help="scans of another cohort, which no split sees: the models of the holdouts are tested "
        "on them, too",
    )
    add(
        "--target",
        metavar="KEY",
        help=f"label to predict, with --dataset {OWN}: a key of the scans' pheno, which holds the "
        "columns of the table of subjects",
    )
    add(
        "--task_type",
        choices=list(TASK_TYPES),
        help="kind of the target (default: regression of age and intelligence, else "
        "classification)",
    )
    add(
        "--group_column",
        metavar="NAME",
        help="column of the table of subjects, or key of pheno: subjects of one value, such as a "
        "family, stay in one part",
    )
    add(
        "--confounds",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns of the subject table, or keys of pheno, that could explain the scores: age, "
        "site, motion",
    )
    add(
        "--keep",
        nargs="+",
        default=[],
        metavar="CONDITION",
        help="columns that scans must meet: qc=1 'motion<0.2' (signs: = != < <= > >=)",
    )
    add("--drop_bad_scans", action="store_true", help="leave out scans that are not finite")
    add(
        "--missing_codes",
        nargs="+",
        default=[],
        metavar="CODE",
        help="labels that stand for a missing value (-9999 9): leave their scans out",
    )
    add(
        "--orientation",
        choices=ROI_ORIENTATIONS,
        default="auto",
        help="of the matrices of series; auto takes regions x time and refuses what looks "
        "otherwise",
    )
    add(
        "--dynamic_length",
        type=int,
        metavar="T",
        help="frames of the part of a scan that a step reads",
    )
    add(
        "--short_scans",
        choices=["pad", "refuse"],
        default="pad",
        help="scans shorter than a crop: take them whole, padded frames do not count (default), "
        "or refuse them",
    )
    add("--atlas", metavar="FILE", help="image of the regions' labels in MNI space, for pictures")

    model = parser.add_argument_group("model")
    add = model.add_argument
    add(
        "--recipe",
        choices=list(RECIPES),
        default="paper",
        help="defaults of the flags below: the paper's, or robust, for some hundreds of subjects",
    )
    add("--signals", nargs="+", metavar="NAME", help=f"raw, diff; {_default('signals')}")
    add("--scales", type=int, nargs="+", metavar="S", help=f"in frames; {_default('scales')}")
    add("--embed_dim", type=int, help=f"width; {_default('embed_dim')}")
    add("--depth", type=int, help=f"Mamba2 layers of a pathway; {_default('depth')}")
    add("--dropout", type=float, help=_default("dropout"))
    add(
        "--region_dropout",
        type=float,
        help=f"share of the regions that a step does not see; {_default('region_dropout')}",
    )
    add(
        "--members",
        type=int,
        help=f"models with weights of their own, whose logits are averaged; {_default('members')}",
    )
    add(
        "--second_order",
        choices=["on", "off"],
        help="add what the baseline Tangent reads in the correlations of the scan, as a pathway; "
        + _default("second_order"),
    )
    add("--ssd_backend", choices=SSD_BACKENDS, default="auto", help="state-space scan")

    fit = parser.add_argument_group("protocol and training")
    add = fit.add_argument
    add("--folds", type=int, default=5, help="of the cross-validation")
    add(
        "--stratify_by",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns (site) whose values holdout and folds get in equal shares, as they do the "
        "classes",
    )
    add(
        "--leave_out",
        metavar="NAME",
        help="column (site) whose values are left out in turn, in place of the folds",
    )
    add("--epochs", type=int, help="of a fit (default: 20)")
    add("--batch_size", type=int, help="scans of a step (default: 32)")
    add("--learning_rate", type=float, help=f"at the start; {_default('learning_rate')}")
    add("--max_learning_rate", type=float, help=f"peak; {_default('max_learning_rate')}")
    add("--weight_decay", type=float, help=f"of AdamW; {_default('weight_decay')}")
    add(
        "--label_smoothing",
        type=float,
        help=f"share of a label that is spread over all classes; {_default('label_smoothing')}",
    )
    add(
        "--baselines",
        nargs="*",
        metavar="NAME",
        help="models to run beside it on the same splits; none without a name (default: "
        f"{' '.join(BASELINES)}, and Confounds with --confounds)",
    )
    add(
        "--harmonise",
        metavar="NAME",
        help="column (site) whose differences ComBat removes from the features of FC, "
        "PartialCorrelation and Tangent: further rows, beside those without",
    )
    add("--results_dir", default="Results", metavar="DIR", help="folder of the results")

    cpa = parser.add_argument_group("Calibrated Pathway Attribution")
    add = cpa.add_argument
    add(
        "--ablation",
        choices=PATHWAY_ABLATIONS,
        default="mean",
        help="what replaces a pathway: its mean over the training scans, or zero",
    )
    add(
        "--cpa_gradient",
        choices=GRADIENTS,
        default="integrated",
        help="gradients along the way from zero to the scan, or at the scan alone",
    )
    add(
        "--analysis_dir",
        default="Analysis/Explainability",
        metavar="DIR",
        help="folder of the maps",
    )
    return parser


def config_of(args: argparse.Namespace) -> EvaluateConfig:
    """The flags as a configuration; the entry of the data set fills in what was not given.

    Raises:
        UserInputError: names a flag.
    """
    look_up(args.model, MODELS, "--model")
    baselines = args.baselines
    if baselines is None:
        baselines = [*BASELINES, *(["Confounds"] if args.confounds else [])]
    for name in baselines:
        look_up(name, MODELS, "--baselines")
    given = vars(args)
    chosen = {
        name: value if given[name] is None else given[name]
        for name, value in RECIPES[args.recipe].items()
    }
    details = details_of(
        args.dataset, args.data_file, args.target, args.dynamic_length, args.task_type
    )
    if details.is_regression and args.label_smoothing is not None:
        raise UserInputError(
            f"--label_smoothing: is of classes, and '{details.target}' is a value (--task_type "
            f"regression). Leave it out."
        )
    explanation = None
    if args.analysis:
        explanation = Explanation(
            cpa=CPAConfig(ablation=args.ablation, gradient=args.cpa_gradient),
            analysis_dir=Path(args.analysis_dir),
            atlas=Path(args.atlas) if args.atlas else None,
        )
    return EvaluateConfig(
        dataset=args.dataset,
        details=details,
        data_dir=Path(args.data_dir),
        data_file=Path(args.data_file) if args.data_file else None,
        test_data=Path(args.test_data) if args.test_data else None,
        group_column=args.group_column,
        confounds=tuple(dict.fromkeys(args.confounds)),
        drop_bad_scans=args.drop_bad_scans,
        missing_codes=tuple(args.missing_codes),
        orientation=args.orientation,
        refuse_short_scans=args.short_scans == "refuse",
        model=args.model,
        baselines=tuple(name for name in dict.fromkeys(baselines) if name != args.model),
        architecture={
            "signals": tuple(chosen["signals"]),
            "scales": tuple(chosen["scales"]),
            **{name: chosen[name] for name in _ARCHITECTURE},
            "second_order": chosen["second_order"] == "on",
            "ssd_backend": args.ssd_backend,
        },
        fit=FitConfig(
            crop=details.dynamic_length if args.dynamic_length is None else args.dynamic_length,
            epochs=details.epochs if args.epochs is None else args.epochs,
            batch_size=details.batch_size if args.batch_size is None else args.batch_size,
            eval_batch_size=details.eval_batch_size,
            **{name: chosen[name] for name in _TRAINING},
        ),
        device=args.device,
        seeds=tuple(args.seeds),
        folds=args.folds,
        cross_validation=not args.skip_cross_validation,
        stratify_by=tuple(dict.fromkeys(args.stratify_by)),
        leave_out=args.leave_out,
        harmonise=args.harmonise,
        keep=tuple(args.keep),
        results_dir=Path(args.results_dir),
        explanation=explanation,
        flags={
            key: " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            for key, value in sorted({**given, **chosen, "baselines": baselines}.items())
            if value not in (None, [])
        },
    )


def run(argv: Sequence[str]) -> int:
    """Do what the flags say.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    config = config_of(build_parser().parse_args(argv))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("neuromamba").setLevel(logging.INFO)
    # Imported here: torch and Lightning take seconds, and a wrong flag need not wait for them.
    from neuromamba.training.lightning import load_lightning

    load_lightning()
    from neuromamba.layers.ssd_native.build import build_for_run
    from neuromamba.neurossm.evaluate import evaluate
    from neuromamba.training.stopping import StoppedRun

    if config.model == "NeuroSSM":
        build_for_run(config.device, str(config.architecture["ssd_backend"]))
    try:
        evaluate(config)
    except StoppedRun as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return stopped.status
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(
        lambda: run(words), "the same command continues after the last finished fit."
    )


if __name__ == "__main__":
    sys.exit(main())
