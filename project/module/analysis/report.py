"""One self-contained HTML page from run folders: no network, pictures embedded.

``Page`` and its parts know nothing about models; the ``*_card`` functions make tables from a run
folder. The text and pictures of a particular report are put together by its entry point.
"""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from project.module.analysis.brain_figures import kept_shares
from project.module.analysis.intervals import CONFIDENCE, RESAMPLES
from project.module.analysis.run_folder import RunFolder
from project.module.analysis.scores import SubjectScores
from project.module.analysis.templates import template
from project.module.utils.data_module import DATASETS, FMRIDataModule

METRIC_LABELS = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "mse": "Squared error",
    "mae": "Absolute error",
    "pearson_r": "Pearson r",
    "r2": "R²",
}
PACKAGES = (
    "torch",
    "pytorch-lightning",
    "numpy",
    "scikit-learn",
    "nibabel",
    "nilearn",
    "h5py",
    "matplotlib",
)


class Link(NamedTuple):
    """A cell that leads to a picture of the page, by its anchor."""

    text: str
    anchor: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        rows: cells, row by row.
        sortable: whether a click on a column's head sorts by it.
        header: names of the columns; empty for a list of properties.
        title, note: above and below it.
        numbers: columns to align right.
        strong: number of the row to emphasise, or -1.
    """

    rows: Sequence[Sequence[str | Link]]
    header: Sequence[str] = ()
    title: str = ""
    note: str = ""
    numbers: Sequence[int] = ()
    strong: int = -1
    sortable: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG file with its caption; ``alt`` says in words what it shows.

    A ``wide`` one is scrolled on a narrow screen instead of shrunk until it cannot be read. Links
    lead to an ``anchor``.
    """

    path: Path
    caption: str
    alt: str
    wide: bool = False
    anchor: str = ""

    @property
    def data_uri(self) -> str:
        """The file as a ``data:`` address."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; ``side_by_side`` if there is room."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""
    side_by_side: bool = False


@dataclass(frozen=True)
class Page:
    """A report; ``notice`` is a sentence that must not be overlooked."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    notice: str = ""

    @property
    def sortable(self) -> bool:
        """Whether there is a table that can be sorted, which takes a script."""
        return any(table.sortable for section in self.sections for table in section.tables)


def wrap_command(command: str, width: int = 88) -> str:
    """A command on several lines that a shell takes as one, broken before flags."""
    lines = [""]
    for part in command.replace(" --", "\n--").replace(" && ", "\n&& ").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return " \\\n".join(lines)


def render(page: Page) -> str:
    """The page as HTML; every text is escaped."""
    return template("report.html.j2").render(page=page)


# ------------------------------------------------------------------------------ tables


def metrics_table(
    scores: Mapping[str, SubjectScores], class_names: Sequence[str] = (), seed: int = 0
) -> Table:
    """Metrics of a model (first) and of others, with intervals and paired differences.

    Args:
        scores: label -> scores.
        class_names: in the order of the class index; none for a regression.
        seed: of the bootstrap.

    Raises:
        UserInputError: the entries were not scored on the same subjects with the same targets.
    """
    first, *_ = scores.values()
    names, main = first.metric_names, first.main_metric
    rows = []
    for label, one in scores.items():
        less = "" if one is first else str(first.difference(one, main, seed))
        rows.append((label, *(str(one.interval(name, seed)) for name in names), less))
    if class_names:
        counts = ", ".join(f"{n} {c}" for n, c in zip(first.per_class, class_names, strict=True))
        what = f" ({counts}); class probabilities averaged over each subject's windows, "
        what += "the most probable class decides"
    else:
        what = "; predictions averaged over each subject's windows"
    return Table(
        rows,
        ("", *(METRIC_LABELS[name] for name in names), f"{METRIC_LABELS[main]}: first less this"),
        note=f"{len(first.target)} held-out subjects{what}. In brackets: {CONFIDENCE:.0%} "
        f"intervals of {RESAMPLES} bootstrap samples of subjects; those of a difference are "
        f"paired, and one that leaves out 0 tells the two models apart. Subjects are drawn within "
        f"classes: an interval without width belongs to a model that calls everybody alike.",
        numbers=range(1, len(names) + 2),
        strong=0,
    )


def data_card(run: RunFolder, data: FMRIDataModule) -> Table:
    """What the run saw: subjects, windows, scaling, orientation, kept tokens, split."""
    config, model = data.config, run.model_config
    parts = {"train": "training", "val": "validation", "test": "test"}
    kept = 100 * kept_shares([p for store in data.stores for p in store.paths], model)
    headers = [header for store in data.stores for header in store.headers]
    voxel = np.linalg.norm(np.array(headers[0].affine)[:3, :3], axis=0)
    rows = [
        ("Data", "; ".join(DATASETS[store.dataset].description for store in data.stores)),
        *(
            (f"Subjects, {label}", f"{_subjects(data, part)}; {data.windows_in(part)} windows")
            for part, label in parts.items()
        ),
        ("Window", f"{config.sequence_length} frames, TR {_range([h.tr for h in headers])} s"),
        ("Grid", f"{' × '.join(map(str, config.img_size))} voxels of {_sizes(voxel)} mm"),
        ("Orientation", f"{run.contents.card['orientation']} (voxel order of the store)"),
        ("Brain mask", ", ".join(sorted({h.mask_source.split(":")[0] for h in headers}))),
        ("Scaling", config.input_scaling_method),
        (
            "Kept tokens",
            f"{kept.mean():.1f} % on average ({kept.min():.1f} to {kept.max():.1f} % in a run)",
        ),
        *(
            (f"Split of {name}", f"number {record['split_num']}, hash {record['hash']}")
            for name, record in run.split_records().items()
        ),
    ]
    return Table(rows, title="Data")


def _subjects(data: FMRIDataModule, part: str) -> str:
    names = [name for store in data.subjects[part] for name in store]
    if data.task is None or data.task.task_type != "classification":
        return str(len(names))
    classes = data.task.class_names
    counts = np.bincount([int(t) for t in data.targets_of_units(part)], minlength=len(classes))
    shown = ", ".join(f"{n} {c}" for n, c in zip(counts, classes, strict=True))
    return f"{len(names)} ({shown})"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _sizes(voxel: np.ndarray) -> str:
    shown = voxel[:1] if np.allclose(voxel, voxel[0]) else voxel
    return " × ".join(f"{v:.3g}" for v in shown)


def model_card(pretrained: RunFolder, finetuned: RunFolder) -> Table:
    """Architecture, numbers of parameters and how both runs were trained."""
    model = finetuned.model_config
    head = finetuned.contents.card["head"]["name"]
    grid = " × ".join(map(str, model.token_grid))
    rows = [
        ("Backbone", f"FMamba, {model.depth} Mamba2 blocks of width {model.embed_dim}"),
        ("State size, heads", f"{model.d_state}, {model.nheads} of width {model.headdim}"),
        ("Patch", f"{' × '.join(map(str, model.patch_size))} (x, y, z, t)"),
        ("Tokens of a window", f"{model.num_tokens:,} ({grid}) of {model.token_dim} values"),
        ("Positional encoding", model.mamba_pe_method),
        ("Parameters, pre-training", f"{pretrained.metrics['model/parameters']:,.0f}"),
        (f"Parameters with {head} head", f"{finetuned.metrics['model/parameters']:,.0f}"),
        *(
            (
                label,
                f"{run.config['optimizer']}, learning rate {run.config['learning_rate']:g}, weight "
                f"decay {run.config['weight_decay']:g}, batch {run.config['batch_size']}, "
                f"{run.metrics['train/steps']:,.0f} steps, seed {run.config['seed']}",
            )
            for label, run in (("Pre-training", pretrained), ("Fine-tuning", finetuned))
        ),
    ]
    return Table(rows, title="Model")


def time_table(seconds: Mapping[str, float]) -> Table:
    """Run time of each stage, and their sum."""
    rows = [(stage, f"{value:.1f}") for stage, value in seconds.items()]
    rows.append(("together", f"{sum(seconds.values()):.1f}"))
    return Table(rows, ("Stage", "Seconds"), "Run time", numbers=(1,), strong=len(rows) - 1)


def version_table() -> Table:
    """Versions of Python and of the packages that matter for the numbers."""
    rows = [("python", platform.python_version())]
    rows += [(name, importlib.metadata.version(name)) for name in PACKAGES]
    return Table(rows, ("Package", "Version"), "Versions")
