"""Pages name what they may run and load, and a browser keeps them to it."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from markupsafe import Markup

from neuromamba.commands import quality as quality_command
from neuromamba.inference.explanation_files import ATTRIBUTION
from neuromamba.pages.page import Page, Picture, Section, Table, render
from neuromamba.pages.policy import policy, with_policy
from neuromamba.reports.attribution_pictures import VIEW, write_view
from tests.helpers.chromium import CHROMIUM, opened
from tests.helpers.paths import PACKAGE
from tests.helpers.quality_store import write_store

# The name of a file cannot hold "/"; every other character can come from data.
HOSTILE = "x<!--<script>\u202ealert(1)\u2066&amp;\"'"
IN_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def report(folder: Path, text: str = HOSTILE, sortable: bool = True) -> str:
    from matplotlib.figure import Figure

    path = folder / "a.png"
    Figure(figsize=(1, 1)).savefig(path)
    table = Table([["2", text], ["1", text]], ["n", "name"], sortable=sortable)
    picture = Picture(path, text, text)
    return render(Page(text, (text,), (Section(text, (text,), [table], [picture], text),), text))


def quality(folder: Path) -> str:
    store = folder / "store"
    write_store(store)
    assert quality_command.main(["--image_path", str(store), "--num_workers", "1"]) == 0
    return (store / "quality" / "quality.html").read_text(encoding="utf-8")


def view(folder: Path) -> str:
    rng = np.random.default_rng(0)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -90, -126, -72
    image = nibabel.Nifti1Image(rng.normal(size=(23, 27, 23)).astype(np.float32), affine)
    nibabel.save(image, folder / f"{HOSTILE}{ATTRIBUTION}")
    write_view(folder, HOSTILE, native=False)
    return (folder / f"{HOSTILE}{VIEW}").read_text(encoding="utf-8")


# What the page's own script leaves in the document.
WRITERS = {"report": (report, "<button"), "quality": (quality, 'class="js"'), "view": (view, "")}


@pytest.fixture(scope="module", params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    write, _ = WRITERS[request.param]
    return str(write(tmp_path_factory.mktemp("page")))


def policy_of(page: str) -> dict[str, str]:
    (found,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    plain = found.replace("&#39;", "'").replace("&#x27;", "'")
    return {name: sources for name, _, sources in (one.partition(" ") for one in plain.split("; "))}


def test_policies_allow_nothing_but_what_the_page_holds(written: str) -> None:
    found = policy_of(written)
    assert found["default-src"] == found["base-uri"] == found["form-action"] == "'none'"
    assert set(found["img-src"].split()) <= {"data:", "blob:"}
    for name in ("script-src", "style-src"):
        assert all(one == "'none'" or one.startswith("'sha256-") for one in found[name].split())
    # It rules from where it stands: nothing before it may run, load or be styled.
    before = written[: written.index("Content-Security-Policy")]
    assert not re.search(r"<(script|style|link|img|body)", before)
    assert not re.search(r"<[^>]* (style|on\w+)=", re.sub(r"(?s)<script.*?</script>", "", written))


@IN_BROWSER
@pytest.mark.parametrize("name", WRITERS)
def test_a_browser_finds_nothing_to_refuse(name: str, tmp_path: Path) -> None:
    """Scripts and styles work under the policy, whatever the names are."""
    write, left = WRITERS[name]
    found = opened(write(tmp_path), tmp_path)
    assert found.console == []
    assert left in found.document


@IN_BROWSER
@pytest.mark.parametrize(
    "smuggled",
    [
        "<script>document.title = 'taken'</script>",
        "<img src=x onerror=\"document.title = 'taken'\">",
        "<style>body { display: none }</style>",
        "<iframe src='data:text/html,x'></iframe>",
        "<img src='http://127.0.0.1:9/a.png'>",
    ],
)
def test_what_got_through_does_nothing(smuggled: str, tmp_path: Path) -> None:
    """As if escaping had failed: the text reaches the page as HTML."""
    found = opened(report(tmp_path, Markup(smuggled)), tmp_path)
    assert "<title>taken" not in found.document
    assert any("Content Security Policy" in line for line in found.console)


def test_names_in_pages_show_what_they_are(tmp_path: Path) -> None:
    for page in (report(tmp_path), view(tmp_path)):
        assert "\u202e" not in page and "\u2066" not in page and "\\u202e" in page
        assert "x<!--<script>" not in page


def test_every_page_comes_from_a_writer_with_a_policy() -> None:
    """Templates carry it, and no other file makes a document of its own."""
    templates = sorted(PACKAGE.rglob("*.j2"))
    assert len(templates) == 2
    assert all("Content-Security-Policy" in path.read_text() for path in templates)
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "<html" not in text.lower() and "<!doctype" not in text.lower(), path
        for maker in ("get_standalone(", "save_as_html("):
            assert maker not in text or f"with_policy(view.{maker}" in text, path


def test_a_policy_is_that_of_the_parsed_text() -> None:
    """Browsers turn line breaks of other systems into their own before they hash."""
    assert policy(["a\r\nb"], ["c\rd"]) == policy(["a\nb"], ["c\nd"])
    assert "script-src 'none'" in policy([], [])
    page = with_policy('<html><head>\n<meta charset="utf-8"><script>1</script></head></html>')
    assert page.index("utf-8") < page.index("Content-Security") < page.index("<script>")
    with pytest.raises(ValueError, match="head"):
        with_policy("<p>")
