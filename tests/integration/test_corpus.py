"""The corpus of bad inputs: each is reported in one line with what was found and what to do.

A folder of images is converted by one call, which reports each by name and converts the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nilearn.masking  # noqa: F401  (loaded before the rights to read it may be given up)
import pytest

from neuromamba.commands.preprocess import main
from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.quarantine import read_quarantine
from neuromamba.data.store.manifest import read_manifest
from tests.helpers.corpus import BAD_FILES, CORPUS
from tests.helpers.corpus.bad_file import BadFile
from tests.helpers.corpus.flags import FLAGS
from tests.helpers.corpus.images import BAD_INPUTS, GOOD, BadInput, write_corpus, write_good
from tests.helpers.scans import GRID, names_in, save, scan

_NOBODY = 65534


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """root may read everything: give the folder and the rights of root away for a while."""
    if os.geteuid() != 0:
        yield
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder that others may enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="neuromamba-corpus-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def ingest(folder: Path, store: Path, *flags: str) -> int:
    arguments = ["--input", str(folder), "--output", str(store), *GRID, "--num_workers", "1"]
    return main([*arguments, "--min_frames", "10", *flags])


@pytest.fixture(scope="module")
def report(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Lines of the call, made once."""
    write_corpus(root / "in")
    (root / "store").mkdir()
    log = root / "log"
    with as_nobody(root), open(log, "w") as stream, contextlib.redirect_stdout(stream):
        status = ingest(root / "in", root / "store")
    assert status == 1
    return log.read_text().splitlines()


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.file)
def test_each_is_reported_by_name_with_the_remedy(report: list[str], bad: BadInput) -> None:
    start = f"warning: {bad.file}: " if bad.converted else "failed: "
    about = [line for line in report if line.startswith(start) and named(line, bad)]
    assert len(about) == 1, about
    assert bad.found in about[0], about[0]
    assert bad.remedy in about[0], about[0]
    assert "unexpected" not in about[0]


def test_sentences_have_one_full_stop(report: list[str]) -> None:
    """Notes that lead to docs/troubleshooting.md are sentences, and are put into others."""
    pointers = [line for line in report if "docs/troubleshooting.md#" in line]
    assert len(pointers) >= 10
    assert not [line for line in report if re.search(r"[a-z)]\.[.;,]", line)]


def named(line: str, bad: BadInput) -> bool:
    if f"/in/{bad.file}" in line or line.startswith(f"warning: {bad.file}"):
        return True
    stem = bad.file.removesuffix(".nii.gz")  # what belongs to a run: its sidecar, its mask
    return any(f"/in/{name}:" in line for name in (f"{stem}.json", mask_name(stem)))


def mask_name(stem: str) -> str:
    return stem.removesuffix("_bold") + "_desc-brain_mask.nii.gz"


def test_the_good_ones_are_converted(report: list[str], root: Path, tmp_path: Path) -> None:
    usable = {bad.file.split(".")[0] for bad in BAD_INPUTS if bad.converted}
    rows = read_manifest(root / "store")
    assert {row.file for row in rows} == {f"hdf5/{name}.h5" for name in names_in(root / "store")}
    sources = {row.source.split(".")[0] for row in rows}
    assert sources == usable | {f"{name}_rest" for name in GOOD}
    # As if the bad ones were not there.
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in")
    assert ingest(tmp_path / "in", tmp_path / "store") == 0
    for name in GOOD:
        file = Path("hdf5") / f"{name}_run-rest.h5"
        assert (tmp_path / "store" / file).read_bytes() == (root / "store" / file).read_bytes()


def test_the_list_of_failures(report: list[str], root: Path) -> None:
    listed = read_quarantine(root / "store")
    failed = {str(root / "in" / bad.file) for bad in BAD_INPUTS if not bad.converted}
    assert set(listed) == failed
    assert sum(line.startswith("failed: ") for line in report) == len(failed)
    assert not list(root.rglob("*.tmp"))
    assert (root / "in" / "sub-b9_events.tsv").read_text() == "onset\tduration\n0\t1\n"


def test_the_plan_refuses_what_headers_show(
    report: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with as_nobody(root):
        assert ingest(root / "in", root / "other", "--dry_run") == 1
    assert not (root / "other").exists()
    plan = capsys.readouterr().out
    for bad in BAD_INPUTS:
        if bad.write.__name__ in ("scanner_space", "oblique", "larger_voxels", "missing_target"):
            assert any(x.startswith("refused: ") and bad.file in x for x in plan.splitlines())


def test_a_mended_file_leaves_the_list(report: list[str], root: Path) -> None:
    mended = root / "in" / "truncated.nii.gz"
    gone = root / "in" / "bit.nii.gz"
    before = mended.read_bytes(), gone.read_bytes()
    try:
        save(mended, scan(999))
        gone.unlink()
        with as_nobody(root):
            assert ingest(root / "in", root / "store") == 1
        listed = {Path(file).name for file in read_quarantine(root / "store")}
        assert "truncated.nii.gz" not in listed
        assert "bit.nii.gz" not in listed
        assert "checksum.nii.gz" in listed
        assert "truncated" in names_in(root / "store")
    finally:
        mended.write_bytes(before[0])
        gone.write_bytes(before[1])


# Other files, each given to its reader -----------------------------------------------------------


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.name)
def test_files_are_refused_in_one_line(
    bad: BadFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError) as found:
        bad.read(tmp_path)
    message = str(found.value)
    assert bad.found in message, message
    assert "\n" not in message and len(message) < 1500
    assert not (tmp_path / "evil").exists()


# Flags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", FLAGS)
def test_flags(refused: Callable[..., str], extra: str) -> None:
    message = refused(extra)
    for part in FLAGS[extra]:
        assert part in message


def test_the_corpus_is_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The last test of the module, which prints how many entries there are."""
    parts = {"images": len(BAD_INPUTS), "files": len(BAD_FILES), "flags": len(FLAGS)}
    assert len(CORPUS) == sum(parts.values())  # no name twice
    assert min(parts["images"], parts["files"]) >= 60 and len(CORPUS) >= 240
    listed = ", ".join(f"{count} {kind}" for kind, count in parts.items())
    with capsys.disabled():
        print(f"\ncorpus of bad inputs: {len(CORPUS)} entries ({listed})")
