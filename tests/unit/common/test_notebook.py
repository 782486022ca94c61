"""Commands and pages in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.common.notebook import CommandLine


def test_a_command_runs_in_the_folder_and_its_last_lines_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    neuromamba = CommandLine(tmp_path / "new", lines=2)
    neuromamba("--help")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["$ neuromamba --help", "..."]
    assert len(said) == 4 and "build-kernels" in said[-1]
    with pytest.raises(UserInputError, match=r"check: exit status 2\. .*nothing_there"):
        neuromamba("check nothing_there scan.nii.gz")


def test_a_temporary_folder_goes_with_its_object() -> None:
    neuromamba = CommandLine()
    folder = neuromamba.folder
    assert folder.is_dir()
    del neuromamba
    assert not folder.exists()


def test_a_page_is_shown_in_a_frame(tmp_path: Path) -> None:
    text = '<!doctype html><p title="a">1 & 2 < 3 </p>'
    (tmp_path / "a.html").write_text(text)
    found: dict[str, str | None] = {}

    class Frames(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag == "iframe"
            found.update(attrs)

    page = CommandLine(tmp_path).page("a.html")
    Frames().feed(page._repr_html_())
    assert found["srcdoc"] == text and found["title"] == "a"
    with pytest.raises(UserInputError, match=r"b\.html: there is no such page"):
        CommandLine(tmp_path).page("b.html")
