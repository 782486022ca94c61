"""Measure every run of a store, compare the runs, and write the page and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import plain_subject
from neuromamba.common.workers import available_cpus
from neuromamba.config.data import DataConfig
from neuromamba.data.store.near_copies import near_copies
from neuromamba.data.store.reader import list_runs, read_header
from neuromamba.reports.quality.measure import QualityOptions
from neuromamba.reports.quality.outliers import Flag, RunSummary, flag_runs
from neuromamba.reports.quality.page import PageContext, write_page
from neuromamba.reports.quality.request import QualityRequest
from neuromamba.reports.quality.similarity import compare_images
from neuromamba.reports.quality.survey import Surveyed, survey_store
from neuromamba.reports.quality.table import Row, make_rows, write_tsv

CACHE = "quality_cache"


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
    runs = survey_store(
        paths,
        page.parent / CACHE,
        options,
        workers,
        report,
        check_content=request.check_content,
    )
    rows = judge(runs, request, data)
    context = PageContext(
        store=request.image_path,
        command=command_of(request),
        available=len(available),
        scaling=request.input_scaling_method,
        patch_size=request.patch_size,
        sequence_length=request.sequence_length,
        frames=request.frames,
        content=content_note(runs, request.check_content),
        shorter=shorter_runs(
            [run.header.n_frames for run in runs if run.header], request.sequence_length
        ),
    )
    write_tsv(page.with_suffix(".tsv"), rows)
    write_page(page, rows, context)
    for line in [*summary(rows, page), content_note(runs, request.check_content)]:
        report(line)
    return rows


def judge(runs: Sequence[Surveyed], request: QualityRequest, data: DataConfig) -> list[Row]:
    """Compare the runs of the store's usual grid with each other and flag all of them."""
    # torch comes with it, which takes seconds, and worker processes import this file.
    from neuromamba.data.windows.dataset import windows_of

    readable = [run for run in runs if run.header and run.numbers]
    summaries = [
        RunSummary(
            name=run.path.stem,
            header=run.header,
            numbers=run.numbers,
            windows=len(windows_of(run.header.n_frames, data)),
        )
        for run in readable
        if run.header and run.numbers
    ]
    if summaries:
        grid = Counter(summary.header.grid for summary in summaries).most_common(1)[0][0]
        chosen = [i for i, summary in enumerate(summaries) if summary.header.grid == grid]
        images = np.stack([readable[i].reduced() for i in chosen])
        found = compare_images(images, lambda: (readable[i].mask() for i in chosen))
        for i, similarity in zip(chosen, found, strict=True):
            summaries[i] = replace(summaries[i], similarity=similarity)
    flags, scores = flag_runs(summaries)
    for run, mine in zip(readable, flags, strict=True):
        if run.content is False:
            mine.append(Flag("content", "its values are not those that its hash was made of"))
    _flag_copies(readable, flags)
    return make_rows(runs, summaries, flags, scores)


def _flag_copies(runs: Sequence[Surveyed], flags: Sequence[list[Flag]]) -> None:
    """Flag both runs of each pair that is one scan under the names of two people."""
    headers = [run.header for run in runs if run.header]
    place = {id(header): i for i, header in enumerate(headers)}
    # People as splits tell them apart: sub-01 and 1 are one.
    for copy in near_copies([run.path for run in runs], headers, plain_subject):
        if copy.one.content_sha256 and copy.one.content_sha256 == copy.other.content_sha256:
            continue  # flagged as a duplicate
        for mine, other in ((copy.one, copy.other), (copy.other, copy.one)):
            flags[place[id(mine)]].append(
                Flag(
                    "copy",
                    f"the same scan as {other.label}, of another subject, but for offset, unit or "
                    f"rounding; remove one",
                )
            )


def shorter_runs(lengths: Sequence[int], frames: int) -> str:
    """Say how many runs are shorter than a window, so that they hold none.

    Args:
        lengths: frames of each run.
        frames: of a window.
    """
    short = [length for length in lengths if length < frames]
    if not short:
        return ""
    longest = f"at most {max(short)}" if len(set(short)) > 1 else str(short[0])
    which = f"All {len(short)} runs have" if len(short) == len(lengths) else f"{len(short)} have"
    return f" ({which} {longest} frames and so no window: use a smaller --sequence_length)"


def command_of(request: QualityRequest) -> str:
    """The command that makes the page again, with the flags that are not defaults."""
    import shlex

    words = ["neuromamba", "quality", "--image_path", request.image_path]
    plain = QualityRequest(image_path=request.image_path)
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
    if request.check_content:
        words.append("--check_content")
    return shlex.join(words)


def content_note(runs: Sequence[Surveyed], compared: bool) -> str:
    """Say whether the values are those that the files' hashes were made of."""
    readable = [run for run in runs if run.header is not None]
    if not compared:
        return (
            "The values were not compared with the hashes of them that the files hold; "
            "--check_content does it."
        )
    counts = Counter(run.content for run in readable)
    note = f"The values of {counts[True]} runs are those of their hashes, of {counts[False]} not"
    return note + (f"; {counts[None]} files hold no hash." if counts[None] else ".")


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
