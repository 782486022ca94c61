"""A scan as a model takes it, and what was done to it on the way."""

from __future__ import annotations

import math
import shutil
import weakref
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import Any, TypeVar

from neuromamba.common.errors import UserInputError, see
from neuromamba.data.store.header import RunHeader
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.inference.brief import Brief
from neuromamba.inference.sources import ScanFile

PreparedT = TypeVar("PreparedT", bound="Prepared")


class TemporaryFolder:
    """A folder that is removed when it is closed, or when nothing refers to it any more.

    Unlike ``tempfile.TemporaryDirectory`` it does not warn in the second case, which is the usual
    one in a notebook.
    """

    def __init__(self) -> None:
        self.path = mkdtemp(prefix="neuromamba-")
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, True)

    def close(self) -> None:
        """Remove the folder and what is in it."""
        self._remove()


@dataclass(frozen=True)
class Problem:
    """A doubt about a scan: what was found, and what can be done."""

    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.found} {self.remedy}".strip()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A measure of the scan beside those of the training runs.

    Attributes:
        name: key of ``MEASURES`` in ``data.windows.input_measures`` or, of regions,
            ``data.regions.series_measures``.
        meaning: what the table says of it.
        value: of the scan; NaN if not defined.
        low, typical, high: lowest, median and highest of the training runs.
        inside: whether the value lies within their range, widened on each side by half of it, by
            more where few runs were measured (five times the range over their number), and at least
            by a tenth of the median; None if either is not defined.
    """

    name: str
    meaning: str
    value: float
    low: float
    typical: float
    high: float
    inside: bool | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Prepared(Brief):
    """What the prepared scans of both families have.

    Attributes:
        name, subject, session, run: as in ``ScanFile``.
        source: the file, for records.
        actions: what was done to the scan, in order.
        problems: doubts, each with a remedy.
        measures: the scan beside the training runs; empty if the checkpoint records none.
        sha256: of the source file.
    """

    name: str
    subject: str
    session: str
    run: str
    source: str
    actions: tuple[str, ...]
    problems: tuple[Problem, ...]
    measures: tuple[Comparison, ...]
    sha256: str

    @property
    def brief(self) -> str:
        """Its name, and how many doubts there are."""
        doubts = len(self.problems)
        compared = {
            None: "not compared with",
            True: "in the range of",
            False: "out of the range of",
        }
        return (
            f"{self.name}, {doubts} problem{'' if doubts == 1 else 's'}, "
            f"{compared[self.in_range]} the training"
        )

    @property
    def in_range(self) -> bool | None:
        """Whether all measures lie in the range of the training; None if none can be compared."""
        known = [one.inside for one in self.measures if one.inside is not None]
        return all(known) if known else None

    @property
    def out_of_range(self) -> tuple[Comparison, ...]:
        """The measures that lie outside the range of the training."""
        return tuple(one for one in self.measures if one.inside is False)

    @property
    def all_doubts(self) -> list[str]:
        """The problems, then the measures out of range, in words."""
        found = [str(problem) for problem in self.problems]
        found += [
            f"{one.name} ({one.meaning}) is {one.value:.3g}, in the training "
            f"{range_text(one.low, one.high)}."
            for one in self.out_of_range
        ]
        return found

    @property
    def doubts(self) -> str:
        """``all_doubts`` in one line; "" if there are none."""
        return " ".join(self.all_doubts)

    def close(self) -> None:
        """Free what the scan holds outside memory: nothing."""

    def __enter__(self: PreparedT) -> PreparedT:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def record_of(self, *, frames: int, tr: float, windows: int) -> dict[str, Any]:
        """What was found and done, in plain containers.

        Args:
            frames: of the scan.
            tr: seconds; NaN if unknown.
            windows: that the model sees.
        """
        return {
            "scan": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "frames": frames,
            "tr": tr if math.isfinite(tr) else None,
            "windows": windows,
            "actions": list(self.actions),
            "problems": [str(problem) for problem in self.problems],
            "measures": {
                one.name: {
                    "meaning": one.meaning,
                    "value": one.value if math.isfinite(one.value) else None,
                    "training": [one.low, one.typical, one.high],
                    "inside": one.inside,
                }
                for one in self.measures
            },
        }


def identity_of(scan: ScanFile) -> dict[str, str]:
    """The first fields of ``Prepared``, from the file of a scan."""
    return {
        "name": scan.name,
        "subject": scan.subject,
        "session": scan.session,
        "run": scan.run,
        "source": str(scan.path),
    }


@dataclass(frozen=True, kw_only=True, repr=False)
class PreparedScan(Prepared):
    """A scan on the model's grid, cut into windows; see ``Prepared`` for the other attributes.

    Attributes:
        header: of the prepared run: grid, placement, TR, source's shape and affine.
        windows: the windows the model sees, scaled as in training.
        mirrored: frames at the end that are the mirror image of those before.
        resampled: whether it was resampled in time.
        trained_on: whether the model was trained, or pre-trained, on these very values.
        temporary: folder that holds the prepared run; None for a run of a store. It is removed
            when the scan is closed or no longer used.
    """

    header: RunHeader
    windows: WindowDataset
    mirrored: int = 0
    resampled: bool = False
    trained_on: bool = False
    temporary: TemporaryFolder | None = None

    def close(self) -> None:
        """Remove the prepared run; the scan cannot be used any more."""
        if self.temporary is not None:
            self.temporary.close()

    def record(self) -> dict[str, Any]:
        """What was found and done, in plain containers."""
        return self.record_of(
            frames=self.header.n_frames, tr=self.header.tr, windows=len(self.windows)
        )


def refuse_doubts(prepared: Prepared) -> None:
    """Do what ``--strict`` says.

    Raises:
        UserInputError: there are problems, or measures out of range.
    """
    if prepared.doubts:
        raise UserInputError(
            f"{prepared.source}: refused by --strict: {prepared.doubts} {see('strict')}"
        )


def range_text(low: float, high: float, digits: int = 3) -> str:
    """A range for people; one number where its ends are written alike."""
    ends = dict.fromkeys(f"{end:.{digits}g}" for end in (low, high))
    return " to ".join(ends)


def comparison_lines(measures: tuple[Comparison, ...]) -> list[str]:
    """One line per measure: value, range of the training, whether it lies outside, meaning."""
    found = []
    for one in measures:
        values = f"{one.name:<12} {one.value:9.4g}   training {range_text(one.low, one.high, 4)}"
        outside = "out of range" if one.inside is False else ""
        found.append(f"{values:<53} {outside:<15}{one.meaning}")
    return found


def require_prepared(scan: Any, method: str, kind: type[Prepared]) -> None:
    """Refuse what a method of a model cannot take, such as a path.

    Raises:
        UserInputError: it is no scan that a model of this family has prepared; names the method.
    """
    if isinstance(scan, Prepared) and not isinstance(scan, kind):
        raise UserInputError(
            f"{method}: got {type(scan).__name__}, which a model of the other family (volumes or "
            f"series of regions) has prepared. Give what this model's prepare(BOLD) returns."
        )
    if not isinstance(scan, Prepared):
        raise UserInputError(
            f"{method}: got {type(scan).__name__}, expected a prepared scan. Give what "
            f"model.prepare(BOLD) returns; model.predict_many([BOLD, ...]) takes paths."
        )
