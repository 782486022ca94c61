"""JSON that somebody else wrote or changed ends in one line, never in a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuromamba.checkpoints.paths import safetensors_in
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json, read_json, read_json_record
from neuromamba.common.stages import Pipeline
from neuromamba.config.serialise import read_yaml
from neuromamba.data.cohorts.split_files import _check_record
from neuromamba.data.ingest.repetition_time import read_sidecar_tr
from neuromamba.data.regions.scan_output import check_output
from neuromamba.data.store.header_cache import _load
from neuromamba.evaluation.probe_rows import read_rows
from neuromamba.fmamba.baselines import read_baselines
from neuromamba.fmamba.label_efficiency import read_points
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.inference.calibration import evaluation_of
from neuromamba.neurossm.protocol import _read_json
from neuromamba.neurossm.results import read_fit
from tests.helpers.paths import PACKAGE

DAMAGED = {
    "deep list": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"key":' * 100_000 + b"1" + b"}" * 100_000,
    "nested 500 deep": b"[" * 500 + b"]" * 500,
    "empty": b"",
    "no JSON": b"no JSON",
    "not UTF-8": b'{"key": "\xff\xfe"}',
    "list": b"[1, 2]",
    "text": b'"text"',
    "null": b"null",
    "number of 5000 digits": b'{"key": ' + b"9" * 5000 + b"}",
    "half a character": b'{"key": "\\ud800"}',
}


@pytest.mark.parametrize("name", [*DAMAGED, "absent"])
def test_a_record_is_read_or_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if name != "absent":
        path.write_bytes(DAMAGED[name])
    for flag in ("", "--flag"):
        with pytest.raises(UserInputError, match=r"some\.json.*Mend it\.") as found:
            read_json_record(path, "Mend it.", flag)
        assert len(str(found.value)) < 400 and flag in str(found.value)


def test_what_is_well_formed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"a": [1, {"b": null}]}')
    assert read_json_record(path, "") == read_json(path, "") == {"a": [1, {"b": None}]}
    assert parse_json(b"[1]") == [1]


def _evaluated(path: Path) -> Any:
    (path.parent / "checkpoints").mkdir()
    return evaluation_of(path.parent / "checkpoints" / "best.ckpt", {})


# Reader -> name of its file, and the reader of it. It returns, or names the file in one line.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "sidecar": ("a.json", read_sidecar_tr),
    "metrics of a run": ("metrics.json", lambda p: RunFolder(p.parent).metrics),
    "evaluation of a run": ("evaluation.json", lambda p: RunFolder(p.parent)._json(p.name)),
    "evaluation of a checkpoint": ("evaluation.json", _evaluated),
    "split": ("s.json", lambda p: _check_record(p, None, 0.7, 0.1, None)),  # type: ignore[arg-type]
    "headers": ("header_cache.json", _load),
    "probes": ("probe.json", read_rows),
    "points": ("label_efficiency.json", lambda p: read_points(p.parent)),
    "baselines": ("baselines.json", lambda p: read_baselines(p.parent, {})),
    "settings of regions": ("settings.json", _read_json),
    "metrics of regions": ("metrics.json", lambda p: read_fit(p.parent, 0, "all")),
    "index of weights": (
        "model.safetensors.index.json",
        lambda p: safetensors_in(p.parent, "--load_model_path"),
    ),
    "extraction": ("x.json", lambda p: check_output(p.with_suffix(".pickle"))),
    "stages": ("stages.json", lambda p: Pipeline(p.parent, p.name)),
    "flags": ("a.yaml", lambda p: read_yaml(p, "--config")),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("reader", READERS)
def test_readers(reader: str, damage: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(DAMAGED[damage])
    said = ""
    try:
        read(tmp_path / name)
    except UserInputError as error:
        said = str(error)
    assert not said or (str(tmp_path) in said and len(said) < 500)


def test_no_file_of_others_is_parsed_in_another_way() -> None:
    """Elsewhere json.loads may only read what json.dumps has just made, and records of our own."""
    ours = {"json_text.py", "build.py"}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"json\.loads?\((?!json\.dumps|text\))", text)
        assert path.name in ours or not found, path
