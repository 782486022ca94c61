"""Settings, records and results as they go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from neuromamba.common.json_text import read_json_record
from neuromamba.config.serialise import read_yaml
from neuromamba.data.ingest.quarantine import QUARANTINE, read_quarantine
from neuromamba.data.ingest.repetition_time import read_sidecar_tr
from neuromamba.data.store.manifest import MANIFEST, read_manifest
from neuromamba.evaluation.result_files import read_predictions
from tests.helpers.corpus.bad_file import BadFile, written


def text_file(
    name: str, content: str | bytes, read: Callable[[Path], object]
) -> Callable[[Path], object]:
    return lambda folder: read(written(folder, content, name))


def _flags(path: Path) -> object:
    return read_yaml(path, "--config")


def _record(path: Path) -> object:
    return read_json_record(path, "Remove it.")


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)
yaml, js = partial(text_file, "a.yaml", read=_flags), partial(text_file, "a.json", read=_record)
SETTINGS = (
    BadFile("flags nested without end", yaml("[" * 3000), "is not valid YAML"),
    BadFile("flags that multiply", yaml(_BOMB), "is not valid YAML"),
    BadFile("flags that make an object", yaml("a: !!python/object/apply:os.system ['id']\n"),
            "is not valid YAML"),
    BadFile("flags with a tab", yaml("a:\n\t- b\n"), "is not valid YAML"),
    BadFile("flags that are a list", yaml("- a\n- b\n"), "must hold 'flag: value' lines"),
    BadFile("flags that are no text", yaml(b"\xff\xfe\x00"), "is not valid YAML"),
    BadFile("record nested without end", js("[" * 100_000), "nested too deep"),
    BadFile("record nested 500 deep", js("[" * 500 + "]" * 500), "nested more than"),
    BadFile("record that is a list", js("[1]"), "found list, expected names with values"),
    BadFile("record cut off", js('{"a": '), "is damaged"),
    BadFile("record that is absent", lambda f: _record(f / "a.json"), "cannot be read"),
    BadFile("number of 5000 digits", js('{"a": ' + "9" * 5000 + "}"), "is damaged"),
    BadFile("sidecar nested without end", text_file("a.json", "[" * 100_000, read_sidecar_tr),
            "not a JSON sidecar"),
    BadFile("sidecar that is a list", text_file("a.json", json.dumps([2.0]), read_sidecar_tr),
            "not a JSON sidecar"),
    BadFile("predictions of text", text_file("p.csv", "subject,target,prob_0\na,b,c\n",
            lambda p: read_predictions(p, "")), "with numbers. Restore it, or evaluate again"),
    BadFile("predictions without scores", text_file("p.csv", "subject,target\na,1\n",
            lambda p: read_predictions(p, "")), "no predictions in it"),
    BadFile("manifest without columns", text_file(MANIFEST, "file\nx\n",
            lambda p: read_manifest(p.parent)), "columns missing"),
    BadFile("manifest cut off", text_file(QUARANTINE, "file\treason\nx\n",
            lambda p: read_quarantine(p.parent)), "not a list with the columns"),
)  # fmt: skip
