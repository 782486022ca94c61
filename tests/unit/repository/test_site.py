"""What the site is built from, without building it: pages of commands, links, the list of pages."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import neuromamba
from neuromamba.__main__ import COMMANDS
from tests.helpers.paths import PACKAGE, ROOT

DOCS = ROOT / "docs"
ALL = {name: command for group in COMMANDS.values() for name, command in group.items()}


def site_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module beside Sphinx's configuration; none of them imports Sphinx."""
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ALL)
def test_a_page_of_a_command_lists_every_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = site_module("command_pages", monkeypatch)
    parser = pages.parser_of(ALL[name])
    text = pages.page(name, ALL[name])
    assert text.startswith(f"neuromamba {name}\n===")
    actions = [one for one in parser._actions if one.help != argparse.SUPPRESS]
    flags = {flag for one in actions for flag in one.option_strings}
    listed = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))
    assert flags - listed <= {"-h", "--help"}
    assert f".. program:: neuromamba {name}" in text


@pytest.mark.parametrize("name", ALL)
def test_every_flag_is_explained_and_defaults_are_as_typed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = site_module("command_pages", monkeypatch).parser_of(ALL[name])
    formatter = parser._get_formatter()
    texts = {one.dest: formatter._expand_help(one) if one.help else "" for one in parser._actions}
    assert [flag for flag, text in texts.items() if not text.strip()] == []
    literals = re.compile(r"default: (?:[\[({'\"]|(?:None|True|False)\b)")
    assert {flag: text for flag, text in texts.items() if literals.search(text)} == {}


def test_text_of_help_has_no_meaning_as_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = site_module("command_pages", monkeypatch)
    assert pages.escaped("a*b |c| `d` e_f") == r"a\*b \|c\| \`d\` e\_f"
    assert pages.escaped("see docs/fault_tolerance.md.") == "see :doc:`/docs/fault_tolerance`."


def test_links_to_folders_lead_to_their_page_or_become_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = site_module("repository_pages", monkeypatch)
    for folder in ("docs", "with", "without", "examples"):
        (tmp_path / folder).mkdir()
    (tmp_path / "with" / "README.md").touch()
    (tmp_path / "file.py").touch()
    text = "[`a`](../with/), [b](../without), [c](../file.py), [d](https://x.org/), ![e](../with)"
    gallery = pages.without_folders("[g](../examples/)", tmp_path / "docs" / "page.md", tmp_path)
    assert gallery == "[g](gallery/index.rst)"
    found = pages.without_folders(text, tmp_path / "docs" / "page.md", tmp_path)
    assert found == (
        "[`a`](../with/README.md), b, [c](../file.py), [d](https://x.org/), ![e](../with)"
    )


def test_a_page_without_a_heading_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = site_module("repository_pages", monkeypatch)
    assert pages.with_heading("text", Path("new_table.md")) == "# New table\n\ntext"
    assert pages.with_heading("text", Path("bf16_on_cpu.md")) == "# bfloat16 on a CPU\n\ntext"
    other = pages.with_heading("text", Path("results/without_bf16/cpu_steps.md"))
    assert other.startswith("# Training steps on a CPU, before and now, without bf16\n")
    results = {page.stem for page in (ROOT / "benchmarks" / "results").glob("*.md")}
    assert pages.TITLES.keys() <= results
    assert pages.with_heading("# Own\n", Path("a.md")) == "# Own\n"


def test_short_words_of_code_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = site_module("repository_pages", monkeypatch)
    long = f'<span class="pre">{"long" * 8}</span>'
    found = pages.with_short_words(f'<span class="pre">--flag</span> {long}')
    assert found == f'<span class="pre short">--flag</span> {long}'


def test_what_a_browser_would_fetch_elsewhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = site_module("build", monkeypatch)
    (tmp_path / "good.html").write_text(
        '<a href="https://x.org">x</a><script src="_static/a.js"></script>'
        '<link rel="canonical" href="https://x.org"><img src="a.png">'
    )
    assert build.fetched_from_elsewhere(tmp_path) == []
    (tmp_path / "bad.html").write_text(
        '<script defer src="https://cdn.x/a.js"></script><img alt="" src="//x.org/a.png">'
        '<link rel="stylesheet" href="https://fonts.x/css">'
    )
    (tmp_path / "bad.css").write_text("@font-face { src: url(https://x.org/f.woff2) }")
    assert len(build.fetched_from_elsewhere(tmp_path)) == 4


def pages_in_navigation() -> set[str]:
    """Documents that the tables of contents of Markdown pages name, relative to the repository."""
    found = set()
    for page in DOCS.glob("*.md"):
        for block in re.findall(r"(?ms)^```\{toctree\}\n(.*?)^```", page.read_text("utf-8")):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    target = re.sub(r".*<(.*)>", r"\1", line)
                    found.add(((DOCS / target).resolve()).relative_to(ROOT).as_posix())
    return found


def test_every_page_of_docs_is_in_the_navigation() -> None:
    pages = {page.relative_to(ROOT).with_suffix("").as_posix() for page in DOCS.glob("*.md")}
    assert pages - pages_in_navigation() == {"docs/index"}


def test_every_name_of_the_public_face_is_on_the_page_of_python() -> None:
    text = (DOCS / "reference" / "python.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"(?m)^\.\. (?:auto)?\w+:: (\w+)(?:\(\))?$", text))
    assert set(neuromamba.__all__) - named == set()


def test_which_command_names_every_command() -> None:
    text = (DOCS / "which_command.md").read_text(encoding="utf-8")
    assert [name for name in ALL if f"`neuromamba {name}" not in text] == []


LONGEST = 2000


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_has_one_purpose(page: Path) -> None:
    """A page that grows beyond this is divided."""
    assert len(page.read_text(encoding="utf-8").split()) <= LONGEST


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_no_level_of_headings_is_left_out(page: Path) -> None:
    """The site's build, which only `make docs` does, ends at such a page."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    levels = [len(marks) for marks in re.findall(r"(?m)^(#+) ", text)]
    steps = zip([0, *levels], levels, strict=False)
    assert [(before, level) for before, level in steps if level > before + 1] == []


def test_pages_that_messages_name_exist() -> None:
    named = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_titles_in_the_navigation_are_those_of_the_pages() -> None:
    """A reader who lands under another title than the one followed believes to have mis-clicked."""
    differ = []
    for block in re.findall(r"(?ms)^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text()):
        for title, target in re.findall(r"(?m)^(.+) <(.+)>$", block):
            page = (DOCS / f"{target}.md").resolve()
            if page.is_file():
                (heading,) = re.findall(r"(?m)\A# (.+)$", page.read_text(encoding="utf-8"))
                differ += [(title, heading)] if title != heading else []
    assert differ == []
