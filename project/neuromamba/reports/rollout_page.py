"""The page of ``neuromamba rollout``: how far generated frames can be followed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.inference.rollout import MEAN, MODEL, PERSISTENCE, RUN_MEAN, Rollout
from neuromamba.inference.rollout_files import PREDICTED, RECORD, TABLE, TRUE
from neuromamba.pages.figures import save_figure
from neuromamba.pages.page import Page, Picture, Section, Table, render, wrap_command
from neuromamba.reports.rollout_figures import error_figure, shown_frames, write_animation

PAGE, ANIMATION = "report.html", "rollout.gif"


def write_rollout_page(
    found: Rollout,
    folder: Path,
    *,
    scan: str,
    model: str,
    facts: Sequence[tuple[str, str]],
    warnings: Sequence[str],
    doubts: Sequence[str],
    command: str,
) -> Path:
    """Write ``rollout.gif`` and ``report.html`` into the folder of a rollout.

    Args:
        found: the rollout.
        folder: that ``write_rollout`` has written.
        scan, model: as the reader knows them.
        facts: name and value, of the scan's preparation and of what the model expects.
        warnings: why the errors say less than they seem to; shown at the top.
        doubts: about the scan, each with its remedy.
        command: for the end of the page.

    Returns:
        The page.
    """
    with tempfile.TemporaryDirectory() as pictures:
        animation = write_animation(found, folder / ANIMATION)
        sections = []
        if len(found.true):
            sections.append(_errors(found, Path(pictures)))
        sections.append(_frames(found, animation))
        sections.append(_how(found, facts))
        if doubts:
            sections.append(Section("Doubts about the scan", doubts))
        sections.append(_files(found))
        sections.append(Section("Command", code=wrap_command(command)))
        page = Page(
            f"Generated frames of {scan}",
            (
                f"{model} has read {_frames_of(len(found.prompt))} of the scan and generated the "
                f"{_frames_of(len(found.predicted))} after them.",
                _verdict(found),
            ),
            sections,
            notice=" ".join([*warnings, *_notices(found)]),
        )
        path = folder / PAGE
        write_text_atomically(path, render(page))
    return path


def _frames_of(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"


def _verdict(found: Rollout) -> str:
    """What the errors say, in a sentence."""
    if not len(found.true):
        return "The scan ends with the prompt, so there are no true frames to compare with."
    own, known = found.summary(), slice(0, found.first_window)
    summary = found.summary(known)
    count = int(summary["frames"] or 0)
    if summary["skill"] is None or own["skill"] is None:
        return "A simple prediction is exact here, so the skill is not defined."
    better = "better" if summary["skill"] > 0 else "no better"
    text = (
        f"Over the first {_frames_of(count)} that it generated, it is {better} than the best of "
        f"the simple predictions ({_baselines(found)}): skill {_skill(summary['skill'])}."
    )
    if int(own["frames"] or 0) > count:
        text += (
            f" Over all {_frames_of(len(found.true))} with a true frame: {_skill(own['skill'])}."
        )
    return text


def _baselines(found: Rollout) -> str:
    names = "the last frame of the prompt, the mean of the prompt"
    return names + (", the mean of the run" if found.scaling.statistics == "run" else "")


def _notices(found: Rollout) -> list[str]:
    texts = []
    if len(found.predicted) > found.first_window:
        texts.append(
            f"Only the first {_frames_of(found.first_window)} fill the window of the prompt. All "
            f"later ones continue, window after window, from frames that the model has generated "
            f"itself, which it was never trained to do; read them as extrapolation."
        )
    if found.scaling.statistics == "run":
        texts.append(
            "The scaling used statistics of the whole run (--statistics run): they hold something "
            "of the frames that were to be predicted, so this is no prediction of the future."
        )
    return texts


def _errors(found: Rollout, folder: Path) -> Section:
    names = [MODEL, PERSISTENCE, MEAN]
    head = ["frames", "model", "last frame", "mean of the prompt"]
    if found.scaling.statistics == "run":
        names, head = [*names, RUN_MEAN], [*head, "mean of the run"]
    head.append("skill")
    parts = [(f"1 to {len(found.true)}", found.summary())]
    within = min(found.first_window, len(found.true))
    if len(found.true) > within:
        parts.insert(0, (f"1 to {within}", found.summary(slice(0, within))))
        later = found.summary(slice(within, None))
        parts.insert(1, (f"{within + 1} to {len(found.true)}", later))
    rows = [
        (name, *(_number(one[key]) for key in names), _skill(one["skill"])) for name, one in parts
    ]
    note = (
        "Mean squared errors over the voxels of the brain, in scaled units. Skill: 1 - error of "
        "the model / the smallest of the others; 0 is no better than it, 1 a perfect "
        "prediction. One rollout of one scan, whose frames depend on each other: no interval."
    )
    picture = Picture(
        save_figure(error_figure(found), folder / "error.png"),
        "Error and skill of each generated frame. The mean of the prompt is a strong prediction of "
        "a signal that fluctuates about it.",
        "Curves of the mean squared error over time of the model, of the last frame of the prompt "
        "and of the mean of the prompt; below them the skill.",
    )
    table = Table(rows, head, note=note, numbers=range(1, len(head)))
    return Section("Error over time", tables=[table], pictures=[picture])


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}"


def _skill(value: float | None) -> str:
    return "not defined" if value is None else f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def _frames(found: Rollout, animation: Path) -> Section:
    shown, count = len(shown_frames(found)), len(found.predicted)
    some = f" {shown} of the {count} frames." if shown < count else ""
    picture = Picture(
        animation,
        "Generated frames, true frames and their difference (generated minus true) in three "
        "slices: deviation of each voxel from its mean over the prompt, in scaled units, so that "
        f"the anatomy does not hide the change over time.{some} A copy is {ANIMATION}.",
        "Animation of sagittal, coronal and axial slices of generated and true frames.",
    )
    return Section("The frames", pictures=[picture])


def _how(found: Rollout, facts: Sequence[tuple[str, str]]) -> Section:
    source = "the prompt alone" if found.scaling.statistics == "prompt" else "the whole run"
    within = min(found.first_window, len(found.predicted))
    rows: list[Sequence[str]] = [
        ("trained to predict", found.objective),
        ("prompt", f"the first {_frames_of(len(found.prompt))}"),
        ("generated in the window of the prompt", _frames_of(within)),
        ("generated in later windows", _frames_of(len(found.predicted) - within)),
        ("scaling", f"{found.scaling.method}, statistics of {source}"),
        *facts,
    ]
    return Section("How the frames were made", tables=[Table(rows)])


def _files(found: Rollout) -> Section:
    rows = [(PREDICTED, "generated frames, in the units, shape and space of the scan's file")]
    if len(found.true):
        rows.append((TRUE, "the true frames, likewise"))
    rows += [
        (ANIMATION, "the animation above"),
        (TABLE, "errors and skill of each generated frame"),
        (RECORD, "summary, settings, and what was done to the scan"),
    ]
    return Section("Files", tables=[Table(rows)])
