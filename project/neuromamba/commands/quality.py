"""A quality page of a store: pictures and numbers of every run, outliers first.

    neuromamba quality --image_path STORE

writes ``STORE/quality/quality.html`` (one file that needs no network), ``quality.tsv`` with all
numbers and flags beside it, and ``quality_cache/``, from which a second call takes the runs that
did not change. docs/quality.md says what the columns and flags mean.

Exit status: 0; 1 if some files cannot be read; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.common.workers import available_cpus
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import RUN_SCALINGS
from neuromamba.data.store.reader import list_runs, read_header
from neuromamba.reports.quality.measure import QualityOptions
from neuromamba.reports.quality.outliers import Facts, flag_runs
from neuromamba.reports.quality.page import PageContext, write_page
from neuromamba.reports.quality.similarity import compare_images
from neuromamba.reports.quality.survey import Surveyed, survey_store
from neuromamba.reports.quality.table import Row, make_rows, write_tsv

CACHE = "quality_cache"


@dataclass(frozen=True)
class QualityRequest:
    """A call of the command; the fields are its flags.

    Raises:
        UserInputError: a value out of range.
    """

    image_path: str
    output: str = ""
    patch_size: tuple[int, ...] = ModelConfig.patch_size
    input_scaling_method: str = DataConfig.input_scaling_method
    sequence_length: int = DataConfig.sequence_length
    frames: int = 0
    limit: int = 0
    num_workers: int | None = None

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--frames", self.frames, 3 if self.frames else 0),
            ("--limit", self.limit, 0),
            ("--num_workers", self.num_workers, 1),
        ):
            if value is not None and value < least:
                or_all = ", or 0 for all" if flag == "--frames" else ""
                raise UserInputError(f"{flag}: got {value}, expected {least} or more{or_all}.")
        if not self.page.name.endswith((".html", ".htm")):
            raise UserInputError(f"--output: got '{self.output}', expected a file FILE.html.")
        for value in (*self.patch_size, self.sequence_length):
            if value < 1:
                flag = "--patch_size" if value in self.patch_size else "--sequence_length"
                raise UserInputError(f"{flag}: got {value}, expected 1 or more.")
        self.check_fit("--sequence_length", "T", self.sequence_length, self.patch_size[3])

    @property
    def page(self) -> Path:
        """The HTML file to write."""
        return Path(self.output) if self.output else Path(self.image_path, "quality/quality.html")

    @property
    def data(self) -> DataConfig:
        """The windows that training would take."""
        return DataConfig(
            dataset_name=("Dummy",),
            image_path=(self.image_path,),
            sequence_length=self.sequence_length,
            input_scaling_method=self.input_scaling_method,
        )

    def check_grid(self, grid: Sequence[int]) -> None:
        """Refuse a patch that does not divide the grid of the store."""
        for axis, length, patch in zip("XYZ", grid, self.patch_size[:3], strict=True):
            self.check_fit("the store's grid", axis, length, patch)

    @staticmethod
    def check_fit(what: str, axis: str, length: int, patch: int) -> None:
        """Refuse a patch that does not divide a length."""
        if length % patch:
            fitting = [n for n in range(1, length + 1) if length % n == 0]
            raise UserInputError(
                f"--patch_size: {patch} does not divide the {length} of {what} along {axis}; "
                f"expected one of {', '.join(map(str, fitting))}."
            )


def quality(request: QualityRequest, report: Callable[[str], None] = print) -> list[Row]:
    """Measure the store and write page and TSV; returns the rows, outliers first.

    Raises:
        UserInputError: no store, flags that do not fit it, an output that cannot be written.
        KeyboardInterrupt: Ctrl-C; what was measured stays in the cache.
    """
    data = request.data
    available = list_runs(request.image_path)
    paths = available[: request.limit or None]
    x, y, z, _ = request.patch_size
    options = QualityOptions(request.frames, (x, y, z), request.input_scaling_method)
    page = request.page
    for path in paths:
        try:
            grid = read_header(path).grid
        except UserInputError:
            continue  # a broken file becomes a row later
        request.check_grid(grid)
        break
    workers = request.num_workers or available_cpus()
    runs = survey_store(paths, page.parent / CACHE, options, workers, report)
    rows = judge(runs, request, data)
    context = PageContext(
        store=request.image_path,
        command=command_of(request),
        available=len(available),
        scaling=request.input_scaling_method,
        patch_size=request.patch_size,
        sequence_length=request.sequence_length,
        frames=request.frames,
    )
    write_tsv(page.with_suffix(".tsv"), rows)
    write_page(page, rows, context)
    for line in summary(rows, page):
        report(line)
    return rows


def judge(runs: Sequence[Surveyed], request: QualityRequest, data: DataConfig) -> list[Row]:
    """Compare the runs of the store's usual grid with each other and flag all of them."""
    # torch comes with it, which takes seconds, and worker processes import this file.
    from neuromamba.data.windows.dataset import windows_of

    readable = [run for run in runs if run.header and run.numbers]
    facts = [
        Facts(run.path.stem, run.header, run.numbers, len(windows_of(run.header.n_frames, data)))
        for run in readable
        if run.header and run.numbers
    ]
    if facts:
        grid = Counter(one.header.grid for one in facts).most_common(1)[0][0]
        chosen = [i for i, one in enumerate(facts) if one.header.grid == grid]
        images = np.stack([readable[i].reduced() for i in chosen])
        found = compare_images(images, lambda: (readable[i].mask() for i in chosen))
        for i, similarity in zip(chosen, found, strict=True):
            facts[i] = replace(facts[i], similarity=similarity)
    flags, standings = flag_runs(facts)
    return make_rows(runs, facts, flags, standings)


def command_of(request: QualityRequest) -> str:
    """The command that makes the page again, with the flags that are not defaults."""
    import shlex

    words = ["neuromamba", "quality", "--image_path", request.image_path]
    plain = QualityRequest(request.image_path)
    for name in (
        "output",
        "patch_size",
        "input_scaling_method",
        "sequence_length",
        "frames",
        "limit",
    ):
        value = getattr(request, name)
        if value != getattr(plain, name):
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def summary(rows: Sequence[Row], page: Path) -> list[str]:
    """The lines that the command ends with."""
    broken = [row for row in rows if row.run.error]
    flagged = [row for row in rows if row.flags and not row.run.error]
    cached = sum(row.run.cached for row in rows)
    lines = [
        "",
        f"{len(rows)} runs ({cached} from the cache): {len(flagged)} flagged, "
        f"{len(broken)} cannot be read",
    ]
    names = Counter(flag.name for row in flagged for flag in row.flags)
    lines += [f"  {name}: {count}" for name, count in names.most_common()]
    return [*lines, f"{page} and {page.with_suffix('.tsv').name} written"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plain = QualityRequest("")
    add = parser.add_argument
    add("--image_path", required=True, metavar="STORE", help="folder of the store")
    add("--output", default="", metavar="FILE.html", help="default: STORE/quality/quality.html")
    add("--patch_size", nargs=4, type=int, default=plain.patch_size, metavar=("X", "Y", "Z", "T"))
    add(
        "--input_scaling_method",
        default=plain.input_scaling_method,
        metavar="NAME",
        help=f"for histogram and background: {', '.join(RUN_SCALINGS)}",
    )
    add("--sequence_length", type=int, default=plain.sequence_length, help="frames of a window")
    add(
        "--frames",
        type=int,
        default=plain.frames,
        metavar="N",
        help="read at most N evenly spaced frames of a run (default: 0, all of them, because a "
        "bad frame that is not read is not found)",
    )
    add("--limit", type=int, default=plain.limit, metavar="N", help="only the first N runs")
    add("--num_workers", type=int, metavar="N", help="processes (default: one per processor)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    values = vars(build_parser().parse_args(argv))
    values["patch_size"] = tuple(values["patch_size"])

    def survey() -> int:
        rows = quality(QualityRequest(**values))
        return 1 if any(row.run.error for row in rows) else 0

    return run_command(survey, "call again to continue from the cache.")


if __name__ == "__main__":
    sys.exit(main())
