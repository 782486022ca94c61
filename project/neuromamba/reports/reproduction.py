"""The papers' tables as jobs: which runs each needs, and the published numbers of its rows.

A job is one call of ``neuromamba train``; rows of several tables share jobs. ``GRIDS`` knows two
sizes of everything: the published one, and a small one on synthetic data that a CPU does in
minutes. ``reproduction_tables.py`` writes what has been run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.checkout import repository
from neuromamba.common.errors import UserInputError
from neuromamba.config.training import MODE_NAMES

TABLES = ("1", "2", "3", "flops", "scaling")
METRICS = {"auroc": "AUC", "accuracy": "ACC"}
FEW = (0.1, 0.25, 0.5)  # shares of the training subjects


def paper_folder() -> Path:
    """``paper/`` of the repository; where there is no checkout, of the working folder."""
    return (repository() or Path()) / "paper"


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are negative or given twice.

    Raises:
        UserInputError: names the flag.
    """
    if min(seeds) < 0:
        raise UserInputError(f"--seeds: got {list(seeds)}, expected numbers from 0 on.")
    if len(set(seeds)) < len(seeds):
        raise UserInputError(f"--seeds: got {list(seeds)}, expected different numbers.")


class Job(NamedTuple):
    """One call of ``neuromamba train``.

    Attributes:
        name: of its folder.
        flags: all but ``--output_dir``.
        after: name of the job whose checkpoint it starts from, or "".
    """

    name: str
    flags: tuple[str, ...]
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        labels: its first columns.
        jobs: one a seed; empty for a row that is quoted.
        published: metric -> text, as published.
        reference: labels of the row that it is compared with, paired.
        note: what the row is.
    """

    labels: tuple[str, ...]
    jobs: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    reference: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table.

    Attributes:
        name: of ``TABLES``.
        title: what it shows.
        header: of the labels.
        rows: in order.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A size of everything.

    Attributes:
        name: "published", or "synthetic".
        sizes: label -> flags of the architecture; the labels are the published ones.
        medium: the label that Table 1 is of.
        window: flags of grid, patch and model that all runs have.
        training: flags of optimiser and length of downstream runs.
        pretraining: the same of pre-training; empty where backbones are released files.
        files: label -> released file.
    """

    name: str
    sizes: Mapping[str, tuple[str, ...]]
    medium: str
    window: tuple[str, ...]
    training: tuple[str, ...]
    pretraining: tuple[str, ...]
    files: Mapping[str, str]


def _sizes(depth: int, widths: Sequence[int]) -> dict[str, tuple[str, ...]]:
    labels = ("1.4M", "3.1M", "5.4M", "11.9M")
    return {
        label: ("--embed_dim", str(width), "--depth", str(depth))
        for label, width in zip(labels, widths, strict=True)
    }


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_RATES = "--learning_rate 1e-4 --weight_decay 1e-2 --warmup 0.05 --train_split 0.8 --val_split 0.1"
_SMALL = "--learning_rate 3e-3 --batch_size 4 --train_split 0.5 --val_split 0.15"
GRIDS: Mapping[str, Grid] = {
    "published": Grid(
        name="published",
        sizes=_sizes(12, (128, 192, 256, 384)),
        medium="5.4M",
        window=_words("--patch_size 6 6 6 2 --img_size 96 96 96 20 --precision bf16"),
        training=_words(f"{_RATES} --batch_size 2 --max_epochs 30"),
        pretraining=_words(f"{_RATES} --max_epochs 40"),
        files={"1.4M": "1M_E128.pt", "3.1M": "3M_E192.pt", "5.4M": "5M_E256.pt"},
    ),
    "synthetic": Grid(
        name="synthetic",
        sizes=_sizes(2, (16, 32, 48, 64)),
        medium="5.4M",
        window=_words("--patch_size 6 6 6 2 --img_size 30 36 30 10"),
        training=_words(f"{_SMALL} --max_epochs 6"),
        pretraining=_words(f"{_SMALL} --max_epochs 4"),
        files={},
    ),
}

# As published, in the READMEs and in paper/README.md.
_TABLE_1 = {
    ("linear", "all"): ("0.7432 ± 0.00", "0.6882 ± 0.01"),
    ("linear", "brain"): ("0.7769 ± 0.00", "0.7156 ± 0.01"),
    ("mamba", "all"): ("0.8456 ± 0.05", "0.7767 ± 0.07"),
    ("mamba", "brain"): ("0.8628 ± 0.08", "0.8104 ± 0.09"),
}
_TABLE_2 = {
    ("1.4M", "linear"): (("0.9767", "0.9427"), ("0.9840", "0.9458")),
    ("1.4M", "mamba"): (("0.9446", "0.8872"), ("0.9535", "0.8781")),
    ("3.1M", "linear"): (("0.9813", "0.9232"), ("0.9885", "0.9455")),
    ("3.1M", "mamba"): (("0.9825", "0.9396"), ("0.9874", "0.9486")),
    ("5.4M", "linear"): (("0.9865", "0.9347"), ("0.9717", "0.9198")),
    ("5.4M", "mamba"): (("0.9729", "0.9175"), ("0.9766", "0.9307")),
}
_TABLE_3 = {"SwiFT": ("4.6M", "0.980", "0.929"), "NeuroSTORM": ("5.0M", "0.976", "0.933")}
MODES = ("scratch", "full")


class Study:
    """The jobs of a user's data and grid.

    Args:
        grid: which size.
        data: flags of the data set.
        seeds: of the downstream runs.
        checkpoints: folder of released files; None where backbones are pre-trained first.
        extra: flags for every run (devices, strategy).

    Raises:
        UserInputError: the published grid without released files.
    """

    def __init__(
        self,
        grid: Grid,
        data: Sequence[str],
        seeds: Sequence[int],
        checkpoints: Path | None,
        extra: Sequence[str] = (),
    ) -> None:
        self.grid, self.data, self.seeds = grid, tuple(data), tuple(seeds)
        self.checkpoints, self.extra = checkpoints, tuple(extra)
        self.jobs: dict[str, Job] = {}

    def _add(self, job: Job) -> str:
        self.jobs[job.name] = job
        return job.name

    def _common(self, size: str) -> tuple[str, ...]:
        return (*self.data, *self.grid.sizes[size], *self.grid.window)

    def pretrained(self, size: str, tokens: str = "brain") -> str:
        """The job of a backbone."""
        more = ("--keep_background",) if tokens == "all" else ()
        flags = ("--pretraining", "--use_autoregressive", *self._common(size), *more)
        flags += (*self.grid.pretraining, "--seed", "0", *self.extra)
        return self._add(Job(f"pretrain_{size}_{tokens}", flags))

    def downstream(
        self, size: str, head: str, mode: str, tokens: str = "brain", share: float = 1.0
    ) -> tuple[str, ...]:
        """The jobs of a cell, one a seed."""
        names = []
        for seed in self.seeds:
            flags = (*self._common(size), *self.grid.training, "--downstream_task", "sex")
            flags += ("--clf_head_version", head)
            name = f"{mode}_{size}_{head}_{tokens}"
            if share < 1:
                flags += ("--limit_training_samples", f"{share:g}")
                name += f"_{share:g}"
            if tokens == "all":
                flags += ("--keep_background",)
            after = ""
            if mode != "scratch":
                after, path = self._start(size, tokens)
                flags += ("--load_model_path", path)
            if mode == "frozen":
                flags += ("--freeze_feature_extractor",)
            flags += ("--seed", str(seed), *self.extra)
            names.append(self._add(Job(f"{name}_seed{seed}", flags, after)))
        return tuple(names)

    def _start(self, size: str, tokens: str) -> tuple[str, str]:
        """Job and path of the backbone that a run starts from."""
        if self.checkpoints is not None and size in self.grid.files:
            return "", str(self.checkpoints / self.grid.files[size])
        name = self.pretrained(size, tokens)
        return name, f"{{{name}}}"

    # -------------------------------------------------------------------------- tables

    def table(self, name: str) -> PaperTable:
        """A table, its jobs added to ``jobs``."""
        return {
            "1": self._table_1,
            "2": self._table_2,
            "3": self._table_3,
            "scaling": self._scaling,
        }[name]()

    def _table_1(self) -> PaperTable:
        rows = []
        for (head, tokens), published in _TABLE_1.items():
            jobs = self.downstream(self.grid.medium, head, "frozen", tokens)
            reference = () if tokens == "all" else (head, "all")
            rows.append(
                Row(
                    labels=(head, tokens),
                    jobs=jobs,
                    published=_published(published),
                    reference=reference,
                )
            )
        return PaperTable(
            name="1",
            title=f"Frozen backbone, {self.grid.medium}: heads and tokens",
            header=("head", "tokens"),
            rows=tuple(rows),
        )

    def _table_2(self) -> PaperTable:
        rows = []
        for (size, head), cells in _TABLE_2.items():
            for mode, published in zip(MODES, cells, strict=True):
                jobs = self.downstream(size, head, mode)
                reference = (size, head, MODE_NAMES["scratch"]) if mode == "full" else ()
                labels = (size, head, MODE_NAMES[mode])
                rows.append(
                    Row(
                        labels=labels,
                        jobs=jobs,
                        published=_published(published),
                        reference=reference,
                    )
                )
        return PaperTable(
            name="2",
            title="Sizes, heads, from scratch and fully fine-tuned",
            header=("size", "head", "mode"),
            rows=tuple(rows),
        )

    def _table_3(self) -> PaperTable:
        quoted = "quoted, other subjects: split 70/15/15"
        rows = [
            Row(labels=(name, size), jobs=(), published=_published(numbers), note=quoted)
            for name, (size, *numbers) in _TABLE_3.items()
        ]
        for head, published in (("linear", {"auroc": "0.989"}), ("mamba", {"accuracy": "0.949"})):
            jobs = self.downstream("3.1M", head, "full")
            label = f"NeuroMamba, {head} head"
            rows.append(
                Row(labels=(label, "3.1M"), jobs=jobs, published=published, note="split 80/10/10")
            )
        return PaperTable(
            name="3", title="Beside other models", header=("model", "size"), rows=tuple(rows)
        )

    def _scaling(self) -> PaperTable:
        rows = [
            Row(labels=(size, "pre-training"), jobs=(self.pretrained(size),))
            for size in self.grid.sizes
        ]
        for share in (*FEW, 1.0):
            jobs = self.downstream("3.1M", "mamba", "full", share=share)
            rows.append(
                Row(labels=("3.1M", f"fine-tuned on {share:.0%} of the subjects"), jobs=jobs)
            )
        return PaperTable(
            name="scaling",
            title="Size of the model, and of the labelled data",
            header=("size", "what"),
            rows=tuple(rows),
        )


def _published(numbers: Sequence[str]) -> dict[str, str]:
    return dict(zip(METRICS, numbers, strict=True))


def finished(folder: Path, name: str) -> bool:
    """Whether a job has its metrics."""
    return (folder / name / "metrics.json").is_file()


def ordered(jobs: Mapping[str, Job]) -> list[Job]:
    """Backbones first."""
    return sorted(jobs.values(), key=lambda job: bool(job.after or "pretrain" not in job.name))


def resolved(job: Job, folder: Path) -> tuple[str, ...]:
    """Flags with the path of the checkpoint that it starts from."""
    path = str(folder / job.after / "checkpoints" / "best.ckpt")
    return tuple(path if word == f"{{{job.after}}}" else word for word in job.flags)


def check_backbones(study: Study) -> None:
    """Refuse before anything runs.

    Raises:
        UserInputError: a released file is missing.
    """
    if study.checkpoints is None:
        return
    missing = [
        file for file in study.grid.files.values() if not (study.checkpoints / file).exists()
    ]
    if missing:
        raise UserInputError(
            f"--checkpoints: '{study.checkpoints}' lacks {', '.join(missing)}. Put the released "
            f"files there, or leave the flag out to pre-train the backbones first."
        )
