"""docs/troubleshooting.md and the messages lead to each other."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import TOPICS, UserInputError, see
from neuromamba.common.text import clause, sentence
from neuromamba.config.model import ModelConfig
from neuromamba.data.cohorts.leak_guards import refuse_trained_subjects
from neuromamba.data.cohorts.suspicious import check_classes, check_values
from neuromamba.data.ingest.brain_grid import implausible_volume
from neuromamba.data.ingest.nifti import damaged
from neuromamba.data.ingest.repetition_time import read_sidecar_tr, resolve_tr
from neuromamba.fmamba.dynamic_skill import missing_dynamics
from neuromamba.inference.output_folder import RUN, OutputFolder
from tests.helpers.paths import PACKAGE, ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def rows() -> dict[str, str]:
    """Anchor of an entry -> the words of its message on the page, "..." for what differs."""
    found = re.findall(r'^\| <a id="([^"]+)"></a>`([^`]+)` \|', PAGE.read_text(), re.MULTILINE)
    assert len(found) == len(dict(found))
    return dict(found)


@functools.cache
def messages() -> dict[str, list[str]]:
    """Anchor -> the texts of the package that lead to it, "{}" for what is put in."""
    found: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "see(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.JoinedStr):
                continue
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            for one in ast.walk(node):
                if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "see":
                    topic = ast.literal_eval(one.args[0])
                    found.setdefault(topic, []).append("".join(map(str, parts)))
    return found


def test_the_page_has_an_entry_for_each_topic() -> None:
    entries = re.findall(r"^\| (?!message|---).*", PAGE.read_text(), re.MULTILINE)
    assert set(rows()) == TOPICS and len(entries) == len(TOPICS) >= 20
    assert all(len(entry.split(" | ")) == 3 for entry in entries)


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_messages_have_the_words_of_their_entry(topic: str) -> None:
    """Every entry is led to, and only by messages that a reader finds on the page."""
    words = re.escape(rows()[topic]).replace(re.escape("..."), ".*")
    assert messages()[topic], topic
    for text in messages()[topic]:
        assert re.search(words, text), (words, text)
        assert text.endswith("{}")  # the pointer is the last sentence


def test_no_topic_without_an_entry() -> None:
    assert set(messages()) <= TOPICS
    with pytest.raises(AssertionError):
        see("nowhere")


# Raised by the code itself, wherever that takes no more than a few lines.


def _link(folder: Path) -> Any:
    path = folder / "bold.nii.gz"
    path.symlink_to(folder / "absent")
    raise damaged(path, FileNotFoundError())


def _sidecar(folder: Path) -> Any:
    path = folder / "bold.json"
    path.symlink_to(folder / "absent")
    return read_sidecar_tr(path)


def _truncated(folder: Path) -> Any:
    raise damaged(folder / "bold.nii.gz", EOFError("ended"))


def _results(folder: Path) -> Any:
    (folder / RUN).write_text('{"key": "another"}')
    model = SimpleNamespace(path=folder, key="mine")
    return OutputFolder._refuse_another(model)  # type: ignore[arg-type]


RAISED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "link": ("not-fetched", _link),
    "sidecar": ("not-fetched", _sidecar),
    "truncated": ("truncated", _truncated),
    "results": ("holds-results", _results),
    "patch": ("patch-size", lambda _: ModelConfig(img_size=(95, 96, 96, 20))),
    "mask": ("mask-volume", lambda _: implausible_volume(np.ones((9, 9, 9), bool), np.eye(4), "m")),
    "placeholder": ("tr-placeholder", lambda _: resolve_tr(1.0, "sec", None, None)[2]),
    "codes": ("missing-codes", lambda _: check_values(_ages(-9999.0), "age", "t")),
    "codes 999": ("missing-codes", lambda _: check_values(_ages(999.0), "age", "t")),
    "case": ("classes-by-case", lambda _: check_classes(["TRUE", "True", "no"], "x", "t", "")),
    "leak": (
        "trained-on",
        lambda _: refuse_trained_subjects(["a"], "--load_model_path", "x", supervised=True),
    ),
    "skill": ("dynamic-skill", lambda _: missing_dynamics(-0.1, "znorm_zeroback")),
}


def _ages(code: float) -> dict[str, float]:
    ages = {f"sub-{i}": 20.0 + i for i in range(30)}
    return ages | {f"sub-{i}": code for i in range(5)}


@pytest.mark.parametrize("name", RAISED)
def test_what_the_code_says(name: str, tmp_path: Path) -> None:
    topic, work = RAISED[name]
    try:
        said = work(tmp_path)
    except UserInputError as error:
        said = str(error)
    assert str(said).endswith(see(topic))
    assert re.search(re.escape(rows()[topic]).replace(re.escape("..."), ".*"), said)


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_a_pointer_has_one_full_stop(topic: str) -> None:
    """Also where a note becomes a sentence, or a part of a list."""
    note = f"check it. {see(topic)}"
    assert sentence(note) == note and sentence(clause(note)) == note
    assert not clause(note).endswith(".")
