"""How the loss of pre-training falls with tokens and parameters, in small runs on synthetic fMRI.

    neuromamba synthetic --output nifti --subjects 160 --effect_size 1 --network_radius 22 --tsnr 50
    neuromamba preprocess --input nifti --output store --dataset_name Dummy --img_size 30 36 30
    python benchmarks/loss_scaling.py --image_path store

Next-token pre-trainings with voxel-wise scaling, of every width on every number of training
subjects, equal epochs, hence steps and tokens in proportion to the subjects. The validation
subjects are the same for all. Two power laws are fitted to the final validation losses L, over
tokens seen D and parameters N:

    without a floor    L = C N^-a D^-b
    with a floor       L = E + A N^-a D^-b

Their 95 % intervals are percentiles of 1,000 bootstrap samples of the runs (drawn within each pair
of width and subjects). The plot goes beside the JSON as .png.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from benchmarks._measure import progress
from benchmarks._report import RESULTS, machine, run, table, where
from neuromamba.commands.train import run as train
from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.reports.brain_figures import kept_shares

SAMPLES = 1_000  # of the bootstrap
LEVELS = (2.5, 97.5)
RATE, RATE_WIDTH = 3e-3, 64  # learning rate of this width; others in proportion to 1 / sqrt(width)
FURTHER = (10, 100, 1_000)  # times the most tokens, for the extrapolation
EXPONENTS = np.linspace(0.0, 1.0, 51)  # tried for the law with a floor
Values = NDArray[np.float64]


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/loss_scaling.py", description=__doc__)
    add = parser.add_argument
    add("--image_path", metavar="STORE", help="a store of synthetic fMRI, as above")
    add("--widths", type=int, nargs="+", default=[32, 64, 128], metavar="N")
    add("--subjects", type=int, nargs="+", default=[20, 40, 80], metavar="N", help="to train on")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N")
    add("--epochs", type=int, default=6, metavar="N")
    add("--depth", type=int, default=2, metavar="N")
    add("--fit_only", action="store_true", help="fit and draw the runs in the JSON file again")
    add("--json", type=Path, metavar="FILE", default=RESULTS / "loss_scaling.json")
    return parser


# ------------------------------------------------------------------------------- the runs


def one_run(args: Any, width: int, subjects: int, seed: int, folder: Path) -> dict[str, Any]:
    """Pre-train once; the figures of a row."""
    argv = (
        f"--pretraining --use_autoregressive --dataset_name Dummy --image_path {args.image_path} "
        f"--img_size 30 36 30 20 --patch_size 6 6 6 2 --input_scaling_method voxelnorm_zeroback "
        f"--train_split 0.5 --val_split 0.15 --limit_training_samples {subjects} --batch_size 4 "
        f"--eval_batch_size 8 --embed_dim {width} --depth {args.depth} --seed {seed} "
        f"--learning_rate {RATE * (RATE_WIDTH / width) ** 0.5:.6g} --max_epochs {args.epochs} "
        f"--check_val_every_n_epoch {args.epochs} --accelerator cpu --devices 1 "
        f"--output_dir {folder}"
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found = train(argv.split())
    done = RunFolder(folder)
    data = done.data()
    paths = [path for one in data.window_sets("train") for path in one.paths]
    per_window = kept_shares(paths, done.model_config).mean() * done.model_config.num_tokens
    return {
        "width": width,
        "subjects": subjects,
        "seed": seed,
        "parameters": int(found["model/parameters"]),
        "tokens": round(float(per_window) * data.windows_in("train") * args.epochs),
        "steps": int(found["train/steps"]),
        "loss": found["val/loss"],
        "step_loss": found["val/step_loss"],
        "step_mean_loss": found["val/step_mean_loss"],
        "dynamic_skill": found["val/dynamic_skill"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def measure(args: Any) -> list[dict[str, Any]]:
    """Rows of all runs, seed after seed, so that an early end leaves whole sets."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for subjects in args.subjects:
                for width in args.widths:
                    path = Path(folder) / f"{seed}_{subjects}_{width}"
                    row = one_run(args, width, subjects, seed, path)
                    rows.append(row)
                    progress(", ".join(f"{name} {value:.5g}" for name, value in row.items()))
                    write_record(args, rows)
    return rows


def write_record(args: Any, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write the JSON file."""
    settings = {name: getattr(args, name) for name in ("epochs", "depth")}
    record = {"machine": args.machine, **settings, "runs": rows, **more}
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------- the fits


def columns(rows: Sequence[dict[str, Any]]) -> tuple[Values, Values, Values]:
    """Parameters, tokens and losses of the runs."""
    found = (np.array([row[name] for row in rows], float) for name in ("parameters", "tokens"))
    parameters, tokens = found
    return parameters, tokens, np.array([row["loss"] for row in rows])


def fit_without_floor(parameters: Values, tokens: Values, loss: Values) -> dict[str, float]:
    """Least squares of the logarithms: log L = log C - a log N - b log D."""
    design = np.stack([np.ones_like(loss), -np.log(parameters), -np.log(tokens)], axis=1)
    (scale, a, b), *_ = np.linalg.lstsq(design, np.log(loss), rcond=None)
    return {"E": 0.0, "A": float(np.exp(scale)), "a": float(a), "b": float(b)}


def fit_with_floor(parameters: Values, tokens: Values, loss: Values) -> dict[str, float]:
    """Least squares: exponents from a grid, floor and factor in closed form, all at least 0."""
    n, d = parameters / parameters.min(), tokens / tokens.min()
    a, b = (grid.reshape(-1, 1) for grid in np.meshgrid(EXPONENTS, EXPONENTS[1:]))
    law = n**-a * d**-b  # a row for each pair of exponents
    about = law - law.mean(1, keepdims=True)
    slope = about @ loss / np.square(about).sum(1)
    floor = loss.mean() - slope * law.mean(1)
    without = floor < 0
    slope[without] = (law @ loss / np.square(law).sum(1))[without]
    floor[without] = 0.0
    errors = np.square(floor[:, None] + slope[:, None] * law - loss).sum(1)
    errors[slope < 0] = np.inf
    i = int(errors.argmin())
    factor = slope[i] * parameters.min() ** a[i, 0] * tokens.min() ** b[i, 0]
    return {"E": float(floor[i]), "A": float(factor), "a": float(a[i, 0]), "b": float(b[i, 0])}


def predicted(law: dict[str, float], parameters: Values, tokens: Values) -> Values:
    """Loss by a law."""
    found: Values = law["E"] + law["A"] * parameters ** -law["a"] * tokens ** -law["b"]
    return found


FITS = {"without a floor": fit_without_floor, "with a floor": fit_with_floor}


def interval(values: Sequence[float]) -> list[float]:
    """Percentiles of bootstrap samples."""
    return [float(v) for v in np.percentile(values, LEVELS)]


def fitted(rows: list[dict[str, Any]], name: str, samples: int) -> dict[str, Any]:
    """A law with its intervals, its error, and what it says of more tokens for the widest model."""
    fit, rng = FITS[name], np.random.default_rng(0)
    cells: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        cells.setdefault((row["width"], row["subjects"]), []).append(i)
    parameters, tokens, loss = columns(rows)
    law = fit(parameters, tokens, loss)
    draws = []
    for _ in range(samples):
        chosen = np.concatenate([rng.choice(group, len(group)) for group in cells.values()])
        draws.append(fit(parameters[chosen], tokens[chosen], loss[chosen]))
    error = predicted(law, parameters, tokens) - loss
    further = []
    for times in (1, *FURTHER):
        at = np.array([parameters.max()]), np.array([times * tokens.max()])
        spread = interval([predicted(draw, *at)[0] for draw in draws])
        further.append({"times": times, "loss": float(predicted(law, *at)[0]), "interval": spread})
    return {
        "law": name,
        **{key: {"value": law[key], "interval": interval([d[key] for d in draws])} for key in law},
        "rms_error": float(np.sqrt(np.square(error).mean())),
        "left_out": left_out(rows, name),
        "further": further,
    }


def left_out(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Fit without the runs of most tokens, and predict these: the error that extrapolating made."""
    most = max(row["subjects"] for row in rows)
    kept = [row for row in rows if row["subjects"] < most]
    tested = [row for row in rows if row["subjects"] == most]
    if len({row["subjects"] for row in kept}) < 2:
        return {"predicted": float("nan"), "measured": float("nan")}
    law = FITS[name](*columns(kept))
    parameters, tokens, loss = columns(tested)
    guess = predicted(law, parameters, tokens)
    return {"predicted": float(guess.mean()), "measured": float(loss.mean())}


# ------------------------------------------------------------------------------- the report


def report(rows: list[dict[str, Any]], laws: list[dict[str, Any]]) -> str:
    """Tables of the runs' means and of the laws."""
    cells = dict.fromkeys((row["width"], row["subjects"]) for row in rows)
    means = []
    for width, subjects in sorted(cells):
        chosen = [r for r in rows if (r["width"], r["subjects"]) == (width, subjects)]
        loss = np.array([row["loss"] for row in chosen])
        spread = f"{loss.min():.4f} to {loss.max():.4f}"
        tokens = float(np.mean([row["tokens"] for row in chosen]))
        ratio = tokens / chosen[0]["parameters"]
        skill = float(np.mean([row["dynamic_skill"] for row in chosen]))
        facts = (width, chosen[0]["parameters"], subjects, round(tokens), f"{ratio:.2g}")
        means.append([*facts, len(chosen), f"{loss.mean():.4f}", spread, f"{skill:.4f}"])
    head = ["width", "parameters", "subjects", "tokens seen", "tokens a parameter", "runs"]
    head += ["loss", "range", "dynamic skill"]

    def shown(one: dict[str, Any]) -> str:
        low, high = one["interval"]
        return f"{one['value']:.3g} [{low:.3g}, {high:.3g}]"

    fits, further = [], []
    for law in laws:
        values = (shown(law[key]) for key in ("E", "a", "b"))
        tested = (f"{law['left_out'][key]:.4f}" for key in ("predicted", "measured"))
        fits.append([law["law"], *values, f"{law['rms_error']:.2g}", *tested])
        spans = [(point["loss"], *point["interval"]) for point in law["further"]]
        further.append([law["law"], *(f"{v:.4f} [{a:.4f}, {b:.4f}]" for v, a, b in spans)])
    ahead = [f"{point['times']:,} x" for point in laws[0]["further"]]
    return "\n".join(
        [
            table("Validation loss of the runs: mean and range over seeds.", head, means),
            table(
                "Power laws with 95 % intervals; E, the floor, is 0 by definition in the first. "
                "The last columns: mean loss of the runs of most tokens, by a fit without them.",
                ["law", "E", "a (parameters)", "b (tokens)", "RMS error", "predicted", "measured"],
                fits,
            ),
            table(
                "Extrapolation: loss of the widest model at multiples of the most tokens.",
                ["law", *ahead],
                further,
            ),
        ]
    )


def draw(rows: list[dict[str, Any]], laws: list[dict[str, Any]]) -> Figure:
    """Losses over tokens by width with the law with a floor; and both laws further out."""
    colours, markers = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^D"
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.5, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
    parameters, tokens, _ = columns(rows)
    floor = {key: laws[-1][key]["value"] for key in ("E", "A", "a", "b")}
    widths = sorted({row["width"] for row in rows})
    for number, width in enumerate(widths):
        chosen = [row for row in rows if row["width"] == width]
        n, d, loss = columns(chosen)
        style = {"color": colours[number % 4]}
        label = f"width {width}, {n[0]:,.0f} parameters"
        left.plot(d, loss, ls="", marker=markers[number % 4], ms=5, label=label, **style)
        along = np.geomspace(tokens.min(), tokens.max(), 50)
        left.plot(along, predicted(floor, np.full(50, n[0]), along), lw=1.2, **style)
    left.set_title("Runs, and the law with a floor", loc="left", fontsize=10)
    ahead = np.geomspace(tokens.min(), FURTHER[-1] * tokens.max(), 200)
    at = np.full(200, parameters.max())
    for law, colour, line in zip(
        laws, ("#6b6b6b", colours[len(widths) - 1]), ("--", "-"), strict=True
    ):
        values = {key: law[key]["value"] for key in ("E", "A", "a", "b")}
        right.plot(ahead, predicted(values, at, ahead), color=colour, ls=line, label=law["law"])
        where_to = np.array([point["times"] for point in law["further"]]) * tokens.max()
        low, high = np.array([point["interval"] for point in law["further"]]).T
        right.fill_between(where_to, low, high, color=colour, alpha=0.25, lw=0)
    widest = [row for row in rows if row["width"] == widths[-1]]
    _, d, loss = columns(widest)
    right.plot(d, loss, ls="", marker=markers[(len(widths) - 1) % 4], ms=5, color="black")
    right.set_title(f"Extrapolated, width {widths[-1]}", loc="left", fontsize=10)
    for axis in (left, right):
        axis.set(xscale="log", xlabel="tokens seen")
        axis.grid(color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8)
    counts = sorted(
        {round(t, -3) for t in (np.mean(tokens[np.isclose(tokens, t, rtol=0.2)]) for t in tokens)}
    )
    left.set_xticks(counts, labels=[f"{count / 1e6:.2g} M" for count in counts])
    left.xaxis.set_minor_locator(NullLocator())
    left.set_ylabel("validation loss (scaled units²)")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args, started = flags().parse_args(argv), time.perf_counter()
    torch.set_num_threads(1)
    if args.fit_only:
        try:
            record = json.loads(args.json.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserInputError(f"--json: cannot read {args.json}: {error}.") from None
        args.machine, rows = record["machine"], record["runs"]
        args.epochs, args.depth = record["epochs"], record["depth"]
    else:
        if not args.image_path:
            raise UserInputError(
                "--image_path: not given; name a store of synthetic fMRI (--help says how to make "
                "one), or fit earlier runs again with --fit_only."
            )
        args.machine = machine(1) | {"load_before": round(os.getloadavg()[0], 2)}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        rows = measure(args)
    for name, field in (("widths", "width"), ("subjects", "subjects")):
        if len({row[field] for row in rows}) < 2:
            raise UserInputError(f"--{name}: a law needs at least two of them, got one.")
    laws = [fitted(rows, name, SAMPLES) for name in FITS]
    text = f"{where(args.machine)}\n\n{report(rows, laws)}"
    write_record(args, rows, laws=laws)
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(rows, laws).savefig(args.json.with_suffix(".png"), dpi=150)
    print(text)
    seconds = round(time.perf_counter() - started)
    print(f"{seconds} s; written: {args.json}, {args.json.stem}.md and {args.json.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
