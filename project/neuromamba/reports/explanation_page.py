"""The page of ``neuromamba explain``: maps of scans and groups beside those of random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.inference.batch import summary
from neuromamba.inference.explain import ExplainOptions
from neuromamba.inference.explanation_files import (
    ATTRIBUTION,
    MEAN,
    PREDICTED,
    RANDOM,
    ExplainedCall,
    Group,
)
from neuromamba.inference.group_maps import MIN_SUBJECTS
from neuromamba.inference.output_folder import SCANS
from neuromamba.inference.score_map import ScoreOptions
from neuromamba.pages.figures import save_figure
from neuromamba.pages.page import FileLink, Page, Picture, Section, Table, render, wrap_command
from neuromamba.reports.attribution_pictures import SHOWN, VIEW, map_figures, write_view
from neuromamba.reports.prediction_page import (
    PAGE,
    contract_section,
    input_sections,
    range_notice,
    scan_sections,
)

MOST_SCANS = 6  # with pictures on the page
_ALIKE = 0.5  # rank correlation with random weights above which a map is doubted
METHODS = {
    "ig": "integrated gradients (Sundararajan et al. 2017)",
    "gradxinput": "gradient times input",
    "occlusion": "occlusion",
}


def write_explanation_page(call: ExplainedCall) -> Path:
    """Write ``report.html`` and ``<scan>_view.html`` of volumes into the folder of a call.

    Returns:
        The page's path.
    """
    native = call.batch.model.contract.native
    for record in call.answered:
        write_view(call.batch.folder.path, record["scan"], native)

    def maps(temporary: Path) -> list[Section]:
        return [
            _table(call.answered, call.options),
            *group_sections(call, partial(_group, temporary=temporary)),
            _scans(call, temporary, native),
        ]

    title = f"Which voxels predictions of {call.batch.model.task.task} rest on"
    return write_page(call, title, _summary(call), maps)


def write_page(
    call: ExplainedCall,
    title: str,
    text: Sequence[str],
    maps: Callable[[Path], Sequence[Section]],
) -> Path:
    """Write ``report.html``, with what the pages of both families have below their maps.

    Args:
        call: of the page.
        title: of the page.
        text: below the title.
        maps: folder for pictures -> sections of the maps; not called if no scan has one.

    Returns:
        The page's path.
    """
    with tempfile.TemporaryDirectory() as temporary:
        sections = [
            *(maps(Path(temporary)) if call.answered else ()),
            *input_sections(call.answered),
            *scan_sections(call.answered, call.refused),
            contract_section(call.batch.model),
            Section("Command", code=wrap_command(call.command)),
        ]
        notices = (range_notice(call.answered, "maps"), notice(call.answered))
        page = Page(title, text, sections, notice=" ".join(filter(None, notices)))
        path = call.batch.folder.path / PAGE
        write_text_atomically(path, render(page))
    return path


def group_sections(call: ExplainedCall, drawn: Callable[[Group, Path], Section]) -> list[Section]:
    """The sections of the groups, or one that says why there are none.

    Args:
        call: of the page.
        drawn: (group, folder of the call) -> its section.
    """
    if not call.groups:
        return [Section("Group", [f"There is no map of a group: {call.no_groups}."])]
    return [drawn(group, call.batch.folder.path) for group in call.groups]


def _summary(call: ExplainedCall) -> list[str]:
    batch, options = call.batch, call.options
    baseline = "a baseline scan (all brain voxels at the run's mean)"
    if batch.model.contract.by_voxel:
        baseline = "a baseline scan (each voxel at its temporal mean)"
    if batch.folder.options.get("references"):
        baseline = "scans of other people (expected gradients, Erion et al. 2021)"
    where = (
        "each patch, whose voxels share its part evenly"
        if options.resolution == "patch"
        else ("each voxel")
    )
    smooth = f", smoothed by {options.smooth:g} mm" if options.smooth else ""
    return [
        f"{call.model_name} on {summary(batch)}; {METHODS[options.method]}.",
        f"Red speaks for what is explained, blue against it, compared with {baseline}. "
        f"A map shows {where}, summed over the frames of a window and averaged over "
        f"windows{smooth}. It describes what this model uses, which need not be what differs "
        f"between people: noise that looks like a class speaks for it too.",
    ]


def notice(answered: Sequence[Mapping[str, Any]]) -> str:
    """Say how many maps resemble those of random weights; "" if none does."""
    keys = ("rank_correlation_with_random_weights", "rank_correlation_of_absolute_values")
    values = [[record["result"][key] or 0.0 for key in keys] for record in answered]
    alike = sum(max(map(abs, both)) > _ALIKE for both in values)
    if not alike:
        return ""
    return (
        f"{alike} of {len(answered)} maps resemble those of a model with random weights (rank "
        f"correlation, with or without signs, above {_ALIKE:g} or below -{_ALIKE:g}): they show "
        f"the input or the architecture, and little of what the model has learned."
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table."""
    return "not defined" if value is None else f"{value:.{digits}g}"


HEAD = (
    *("scan", "prediction", "explained", "score", "baseline", "completeness error"),
    *("random weights", "without signs"),
)


def score_cells(record: Mapping[str, Any]) -> list[str]:
    """The cells of a scan below ``HEAD``."""
    found = record["result"]
    predicted = found["predicted"]
    return [
        record["scan"],
        predicted if isinstance(predicted, str) else f"{predicted:.4g}",
        found["target"] or "the value",
        number(found["score"]),
        number(found["baseline_score"]),
        number(found["completeness_error"], 2),
        number(found["rank_correlation_with_random_weights"], 2),
        number(found["rank_correlation_of_absolute_values"], 2),
    ]


def score_note(record: Mapping[str, Any], parts: str, options: ScoreOptions) -> str:
    """What the columns of ``HEAD`` mean.

    Args:
        record: of any scan.
        parts: what the map has values for.
        options: of the maps.
    """
    score, of_class = "the predicted value", ""
    if record["result"]["target"]:
        score = "logit of the class that is explained minus the mean of the others'"
        of_class = ", of the same class" if options.target else ", of the class that these predict"
    over = ", mean over windows" if parts == "voxels" else ""
    return (
        f"Score: {score}{over}; the map adds up to score minus baseline where the completeness "
        f"error is small (its share of that difference; only of integrated gradients). Random "
        f"weights: Spearman's correlation over {parts} with the map of a model with random weights "
        f"(seed {options.seed}){of_class}, near 0 if the map depends on what was learned (Adebayo "
        f"et al. 2018)."
    )


def _table(answered: Sequence[Mapping[str, Any]], options: ExplainOptions) -> Section:
    rows: list[Sequence[str | FileLink]] = [
        (
            *score_cells(record),
            str(record["result"]["windows"]),
            FileLink("view", f"{record['scan']}{VIEW}"),
        )
        for record in answered
    ]
    head = (*HEAD, "windows", "interactive")
    note = score_note(answered[0], "voxels", options)
    return Section("Maps", tables=[Table(rows, head, note=note, numbers=range(3, 9))])


def group_text(group: Group) -> list[str]:
    """What a group is, and the result of its test."""
    found, parts = group.found, group.parts
    what = f"What speaks for {group.name}."
    if group.name == PREDICTED:
        what = (
            "What speaks for the class that is predicted, which is not the same class in all "
            "subjects. If as many are predicted in each class, what all scans share cancels."
        )
    where = f"{len(found.vox)} voxels in the masks of all" if parts == "voxels" else ""
    text = [f"{what} {found.subjects} subjects, {where or f'{len(found.vox)} {parts}'}."]
    if found.p is None or found.t is None:
        return [
            *text,
            f"t and p are not defined: with fewer than {MIN_SUBJECTS} subjects no sign-flip test "
            f"can reach p = 0.05.",
        ]
    count, how = int((found.p <= 0.05).sum()), "all" if found.exact else "random"
    return [
        *text,
        f"One-sample test of the mean against 0 by {found.permutations} ({how}) sign flips, "
        f"two-sided, corrected for the family-wise error by the largest |t|: {count} {parts} have "
        f"p <= 0.05; the smallest p is {found.p.min():.2g}.",
    ]


def group_title(group: Group) -> str:
    """Title of the section of a group."""
    everyone = group.name == PREDICTED
    return "Group: the predicted class" if everyone else f"Group: {group.name}"


def group_pictures(group: Group, folder: Path, temporary: Path) -> list[Picture]:
    """Mean map of a group, and that of random weights."""
    subjects = group.found.subjects
    own, random = folder / group.files["mean"], folder / group.files["random"]
    figures = map_figures(own, random, f"mean of {subjects} subjects", None)
    files = ", ".join(group.files.values())
    what = f"mean map of {subjects} subjects in slices and a glass brain"
    return [
        Picture(
            save_figure(figures[0], temporary / f"{own.name}.png"),
            f"The model. The glass brains show the upper {100 - SHOWN} % of absolute values. "
            f"Files: {files}.",
            f"{what.capitalize()}.",
            wide=True,
        ),
        Picture(
            save_figure(figures[1], temporary / f"{random.name}.png"),
            "Random weights.",
            f"With random weights: {what}.",
            wide=True,
        ),
    ]


def _group(group: Group, folder: Path, temporary: Path) -> Section:
    pictures = group_pictures(group, folder, temporary)
    return Section(group_title(group), group_text(group), pictures=pictures, side_by_side=True)


def scan_pictures(
    record: Mapping[str, Any], folder: Path, temporary: Path, background: Path | None = None
) -> list[Picture]:
    """Map of a scan, and that of random weights.

    Args:
        record: of the scan.
        folder: of the call.
        temporary: for the pictures.
        background: mean image of a scan in native space; None for MNI.
    """
    scan, target = record["scan"], record["result"]["target"]
    own, random = folder / f"{scan}{ATTRIBUTION}", folder / f"{scan}{RANDOM}"
    figures = map_figures(own, random, target or "value", background)
    where = "in slices" if background else "in slices and a glass brain"
    return [
        Picture(
            save_figure(figures[0], temporary / f"{scan}.png"),
            f"{scan}: the model. The map is {scan}{ATTRIBUTION}; {scan}{VIEW} shows its largest "
            f"tenth on any slice, in percent of the largest value.",
            f"Attribution of {scan} {where}.",
            wide=True,
        ),
        Picture(
            save_figure(figures[1], temporary / f"{scan}_random.png"),
            f"{scan}: random weights.",
            f"Attribution of {scan} with random weights, {where}.",
            wide=True,
        ),
    ]


def _scans(call: ExplainedCall, temporary: Path, native: bool) -> Section:
    answered, folder = call.answered, call.batch.folder.path
    pictures = []
    for record in answered[:MOST_SCANS]:
        mean = folder / SCANS / f"{record['scan']}{MEAN}" if native else None
        pictures += scan_pictures(record, folder, temporary, mean)
    text = []
    if len(answered) > MOST_SCANS:
        text = [f"The first {MOST_SCANS} of {len(answered)} scans."]
    return Section("Scans", text, pictures=pictures, side_by_side=True)
