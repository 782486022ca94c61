"""Tables, events, series of regions, runs of a store, checkpoints and settings as they go wrong.

Each is written into an empty folder and given to the reader that a command would use.
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.checkpoints.paths import safetensors_in
from neuromamba.common.json_text import read_json_record
from neuromamba.config.serialise import read_yaml
from neuromamba.data.cohorts.events import event_task
from neuromamba.data.cohorts.labels import own_classes
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.ingest.quarantine import QUARANTINE, read_quarantine
from neuromamba.data.ingest.repetition_time import read_sidecar_tr
from neuromamba.data.regions.collections.importing import ImportOptions, import_collection
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.registry import details_of
from neuromamba.data.store.manifest import MANIFEST, read_manifest
from neuromamba.data.store.reader import RunFile
from neuromamba.evaluation.result_files import read_predictions
from tests.helpers.tiny import write_tiny_run


@dataclass(frozen=True)
class BadFile:
    """A bad file.

    Attributes:
        name: what it is, in words.
        read: writes it into an empty folder and reads it.
        found: part of the message that says what is wrong.
    """

    name: str
    read: Callable[[Path], object]
    found: str


# --- tables of labels ---------------------------------------------------------------------------


def _table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _rows(values: Iterable[object]) -> str:
    return "subject,x\n" + "".join(f"sub-{i:02d},{value}\n" for i, value in enumerate(values))


def table(content: str | bytes, name: str = "t.csv") -> Callable[[Path], object]:
    return lambda folder: read_table(_table(folder, content, name))


def column(values: Iterable[object], kind: str = "", **given: Any) -> Callable[[Path], object]:
    """``--label_csv`` with ``--target_column x``."""
    text = _rows(values)

    def read(folder: Path) -> object:
        path = _table(folder, text)
        found = own_classes(kind, str(path), "x", **given)
        if kind == "regression":
            from neuromamba.data.cohorts.suspicious import check_values

            cells = read_table(path).column("x", "")
            check_values({str(i): float(v) for i, v in enumerate(cells)}, "x", "t.csv")
        return found

    return read


AGES = [20.5 + i for i in range(30)]
TABLES = (
    BadFile("empty table", table(""), "the file is empty"),
    BadFile("table of spaces", table("\n\n"), "the file is empty"),
    BadFile("table in UTF-16", table("subject,x\n1,2\n".encode("utf-16")), "not a text file"),
    BadFile("table in Latin-1", table("subject,x\n1,é\n".encode("latin-1")), "not a text file"),
    BadFile("spreadsheet", table(b"PK\x03\x04\x14\x00\xff\xfe", "t.csv"), "not a text file"),
    BadFile("compressed table", table(gzip.compress(b"subject,x\n")), "not a text file"),
    BadFile("column named twice", table("subject,x,x\n1,2,3\n"), "more than one column is called"),
    BadFile("row with more fields", table("subject,x\n1,2,3\n"), "found 3 fields, expected 2"),
    BadFile("comma in a text", table("subject,x\n1,Smith, J\n"), "Quote the fields that hold a"),
    BadFile("table that is absent", lambda f: read_table(f / "no.csv"), "cannot read the table"),
    BadFile("table that is a folder", lambda f: read_table(f), "cannot read the table"),
    BadFile("column that is absent", lambda f: own_classes("", str(_table(f, _rows("ab"))), "y"),
            "unknown name 'y'"),
    BadFile("column without a value", column(["", "n/a", "NA"]), "holds no value"),
    BadFile("numbers without a kind", column([1, 2, 1, 2]), "may be classes or values"),
    BadFile("text for a regression", column(["20", "old"], "regression"), "needs numbers"),
    BadFile("ages as classes", column([20.5 + i for i in range(100)], "classification"),
            "different values, more than the"),
    BadFile("TRUE, True and true", column(["TRUE", "True", "true"]), "differ only by case"),
    BadFile("F and f", column(["F", "f", "M"]), "differ only by case"),
    BadFile("Patient and patient", column(["Patient", "patient", "control"]), "only by case"),
    BadFile("-9999 as an age", column([*AGES, -9999, -9999], "regression"), "_codes -9999"),
    BadFile("999 as an age", column([*AGES, 999, 999, 999], "regression"), "--missing_codes 999"),
    BadFile("-9 as a score", column([*AGES, -9, -9, -9], "regression"), "--missing_codes -9"),
    BadFile("-9999 as a class", column([0, 1, -9999] * 5, "classification"), "--missing_codes"),
    BadFile("999 as a class", column([1, 2, 999] * 5, "classification"), "--missing_codes"),
    BadFile("9 as a class", column([1, 2, 9] * 5, "classification"), "--missing_codes"),
)  # fmt: skip


# --- events -------------------------------------------------------------------------------------


def events(content: str | None, name: str = "sub-01_task-x_events.tsv", kind: str = "") -> Any:
    def read(folder: Path) -> object:
        if content is not None:
            (folder / name).write_text(content)
        return event_task(str(folder), "trial_type", kind)

    return read


_HEAD = "onset\tduration\ttrial_type\n"
EVENTS = (
    BadFile("no events", events(None), "no *_events.tsv in"),
    BadFile("events in other files", events(_HEAD, "sub-01_physio.tsv"), "no *_events.tsv in"),
    BadFile("events of Word", events(_HEAD, "~$sub-01_events.tsv"), "no *_events.tsv in"),
    BadFile("events of macOS", events(_HEAD, "._sub-01_events.tsv"), "no *_events.tsv in"),
    BadFile("events without onset", events("start\tduration\ttrial_type\n1\t2\ta\n"), "onset"),
    BadFile("events without type", events("onset\tduration\n1\t2\n"), "trial_type"),
    BadFile("events without a type that is known", events(_HEAD + "1\t2\tn/a\n"), "trial_type"),
    BadFile("onset that is text", events(_HEAD + "soon\t2\ta\n"), "onset"),
    BadFile("duration below 0", events(_HEAD + "1\t-2\ta\n"), "duration"),
)


# --- series of regions --------------------------------------------------------------------------


def smooth(seed: int, regions: int = 12, frames: int = 40) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((regions, frames))
    for t in range(1, frames):
        noise[:, t] += 0.7 * noise[:, t - 1]
    return noise.astype(np.float32)


def scans(
    matrices: list[Any], names: list[Any] | None = None, labels: Iterable[Any] = "ab"
) -> Callable[[Path], object]:
    """``--dataset Own`` with ``--target dx``."""
    names = names or [f"p{i}" for i in range(len(matrices))]
    listed = list(labels)

    def read(folder: Path) -> object:
        path = folder / "mine.pickle"
        samples = [
            {"roiTimeseries": m, "pheno": {"subjectId": n, "dx": listed[i % len(listed)]}}
            for i, (m, n) in enumerate(zip(matrices, names, strict=True))
        ]
        path.write_bytes(pickle.dumps(samples))
        return _own(path)

    return read


def _own(path: Path) -> object:
    return load_cohort("Own", details_of("Own", str(path), "dx", 10), path.parent, data_file=path)


def regions_file(content: bytes, name: str = "mine.pickle") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return _own(folder / name)

    return read


def concatenated(lengths: list[int] | None, content: bytes = b"") -> Callable[[Path], object]:
    """``neuromamba regions import`` of an ``.npz`` file of two scans."""

    def read(folder: Path) -> object:
        path = folder / "mine.npz"
        if content:
            path.write_bytes(content)
        else:
            known = {} if lengths is None else {"length": lengths}
            np.savez(path, ts=np.concatenate([smooth(i).T for i in range(2)]), **known)
        return import_collection(ImportOptions(source=path))

    return read


def tables(matrices: list[Any], kinds: str = "") -> Callable[[Path], object]:
    """``neuromamba regions import`` of a folder with a CSV file for each scan."""

    def read(folder: Path) -> object:
        for i, matrix in enumerate(matrices):
            for kind in kinds or [""]:
                np.savetxt(folder / f"sub-{i}_{kind or 'bold'}.csv", matrix, delimiter=",")
        return import_collection(ImportOptions(source=folder))

    return read


class _Call:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        import os

        return os.mkdir, ("evil",)


SERIES = [smooth(i) for i in range(8)]
TWICE = [*SERIES[:7], SERIES[0] * 2 + 5]
REGIONS = (
    BadFile("time x regions", scans([s.T.copy() for s in SERIES]), "look like time x regions"),
    BadFile(
        "square time x regions",
        scans([smooth(i, 40, 40).T.copy() for i in range(8)]),
        "look like time x regions",
    ),
    BadFile("correlations", scans([np.corrcoef(s) for s in SERIES]), "correlation"),
    BadFile("covariances", scans([np.cov(s) for s in SERIES]), "symmetric"),
    BadFile("a copy of a scan", scans([*SERIES[:7], SERIES[0]]), "the same values"),
    BadFile("a scaled copy", scans(TWICE), "but for their offset and unit"),
    BadFile(
        "a negative unit",
        scans([*SERIES[:7], (SERIES[1] * 1e-3).astype(np.float64) + 1]),
        "the same values",
    ),
    BadFile("ids 1 and 1.0", scans(SERIES, ["1", "1.0", *"345678"]), "seem to be one subject"),
    BadFile("sub-0001 and 1", scans(SERIES, ["sub-0001", "1", *"345678"]), "seem to be one"),
    BadFile("ids that differ by case", scans(SERIES, ["a1", "A1", *"345678"]), "seem to be one"),
    BadFile("-9999 as a diagnosis", scans(SERIES, labels=[0, 1, -9999, 1]), "-9999"),
    BadFile("TRUE and True as diagnoses", scans(SERIES, labels=["TRUE", "True"]), "case"),
    BadFile("None as the only diagnosis", scans(SERIES, labels=["a", None]), "class"),
    BadFile("scans that are not finite", scans([s * np.nan for s in SERIES]), "finite"),
    BadFile("vectors", scans([s[0] for s in SERIES]), "expected a matrix"),
    BadFile("no scans", scans([]), "holds no scan"),
    BadFile("pickle that runs a program", regions_file(pickle.dumps([_Call()])), "posix.mkdir"),
    BadFile("pickle cut off", regions_file(pickle.dumps(SERIES)[:99]), "mine.pickle"),
    BadFile("empty pickle", regions_file(b""), "mine.pickle"),
    BadFile("page of a login as pickle", regions_file(b"<html>Login</html>"), "mine.pickle"),
    BadFile("npz of other lengths", concatenated([40, 41]), "has 2 scans with 81 frames"),
    BadFile("npz without lengths", concatenated(None), "lacks the array 'length'"),
    BadFile("page of a login as npz", concatenated([], b"<html>Login</html>"), "is damaged"),
    BadFile("a folder of turned tables", tables(SERIES), "Give --orientation regions"),
    BadFile("a folder with a copy", tables([s.T for s in TWICE]), "Give --drop_duplicates"),
    BadFile("a folder of two atlases", tables([s.T for s in SERIES], "ab"), "Name one of them"),
    BadFile("an empty folder", tables([]), "has no series of regions"),
)


# --- runs of a store ----------------------------------------------------------------------------


def run(change: Callable[[h5py.File, Path], object]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        path = folder / "sub-01.h5"
        write_tiny_run(path, "sub-01", 0)
        with h5py.File(path, "r+") as file:
            change(file, folder)
        found = RunFile(path)
        try:
            return found.read([0]), found.vox
        finally:
            found.close()

    return read


def attribute(name: str, value: Any) -> Callable[[Path], object]:
    return run(lambda file, _: file.attrs.__setitem__(name, value))


def _external_raw(file: h5py.File, folder: Path) -> None:
    shape, dtype = file["bold"].shape, file["bold"].dtype
    (folder / "private").write_bytes(b"secret" * 100_000)
    del file["bold"]
    size = int(np.prod(shape)) * dtype.itemsize
    file.create_dataset("bold", shape, dtype, external=[(str(folder / "private"), 0, size)])


def _external_link(file: h5py.File, folder: Path) -> None:
    write_tiny_run(folder / "other.h5", "sub-02", 1)
    del file["bold"]
    file["bold"] = h5py.ExternalLink(str(folder / "other.h5"), "/bold")


def _virtual(file: h5py.File, folder: Path) -> None:
    write_tiny_run(folder / "other.h5", "sub-02", 1)
    shape = file["bold"].shape
    layout = h5py.VirtualLayout(shape=shape, dtype="<i2")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "bold", shape=shape)
    del file["bold"]
    file.create_virtual_dataset("bold", layout)


def _soft_link(file: h5py.File, _: Path) -> None:
    file.move("bold", "elsewhere")
    file["bold"] = h5py.SoftLink("/elsewhere")


def _without_bold(file: h5py.File, _: Path) -> None:
    del file["bold"]


def _disorder(file: h5py.File, _: Path) -> None:
    file["vox"][:] = file["vox"][:][::-1]


def raw(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "sub-01.h5").write_bytes(content)
        return RunFile(folder / "sub-01.h5").header

    return read


RUNS = (
    BadFile("external raw file", run(_external_raw), "not a file of this store"),
    BadFile("external link", run(_external_link), "not a file of this store"),
    BadFile("virtual data set", run(_virtual), "not a file of this store"),
    BadFile("soft link", run(_soft_link), "not a file of this store"),
    BadFile("run without data", run(_without_bold), "/bold is nothing"),
    BadFile("voxels in disorder", run(_disorder), "sub-01.h5"),
    BadFile("two billion frames", attribute("n_frames", 2_000_000_000), "/bold is"),
    BadFile("frames below 0", attribute("n_frames", -1), "sub-01.h5"),
    BadFile("grid of 10^18 voxels", attribute("grid", [10**6] * 3), "damaged"),
    BadFile("scale that is no number", attribute("scale", np.nan), "not finite: scale"),
    BadFile("mean that is infinite", attribute("mean", np.inf), "not finite: mean"),
    BadFile("subject with a folder", attribute("subject", "../../x"), "the character U+002F"),
    BadFile("subject with a line break", attribute("subject", "a\nb"), "the character U+000A"),
    BadFile("subject of 10,000 letters", attribute("subject", "x" * 10_000), "of 10000 bytes"),
    BadFile("subject without a name", attribute("subject", ""), "has no name"),
    BadFile("another version", attribute("format_version", 99), "format version 99"),
    BadFile("no HDF5", raw(b"<html>Login</html>"), "sub-01.h5"),
    BadFile("empty run", raw(b""), "sub-01.h5"),
)


# --- checkpoints --------------------------------------------------------------------------------


def checkpoint(content: bytes, name: str = "m.ckpt") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read_checkpoint(folder / name)

    return read


def saved(content: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        torch.save(content, folder / "m.ckpt")
        return read_checkpoint(folder / "m.ckpt")

    return read


def tensors(**state: torch.Tensor) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        save_file(state, folder / "m.safetensors")
        return read_checkpoint(folder / "m.safetensors")

    return read


def index(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "model.safetensors.index.json").write_bytes(content)
        return safetensors_in(folder, "--load_model_path")

    return read


_NAN = torch.tensor([1.0, float("nan")])
CHECKPOINTS = (
    BadFile("empty checkpoint", checkpoint(b""), "m.ckpt"),
    BadFile("text as checkpoint", checkpoint(b"hello"), "its bytes cannot be decoded, KeyError)"),
    BadFile("letter as checkpoint", checkpoint(b"e"), "its bytes cannot be decoded, IndexError)"),
    BadFile("page of a login as checkpoint", checkpoint(b"<html>Login</html>"), "m.ckpt"),
    BadFile("checkpoint that runs a program", checkpoint(pickle.dumps(_Call())), "m.ckpt"),
    BadFile("safetensors cut off", checkpoint(b"\xff" * 9, "m.safetensors"), "m.safetensors"),
    BadFile("safetensors of 2^60 bytes", checkpoint(b"\0" * 7 + b"\x10{}", "m.safetensors"),
            "m.safetensors"),
    BadFile("weight that is no number", tensors(w=_NAN), "'w'"),
    BadFile("weight that is infinite", tensors(w=torch.tensor([float("inf")])), "'w'"),
    BadFile("weights that diverged", saved({"state_dict": {"model.w": _NAN}}), "'w'"),
    BadFile("index that is no JSON", index(b"{"), "no weight_map"),
    BadFile("index nested without end", index(b"[" * 100_000), "no weight_map"),
    BadFile("index of another folder", index(b'{"weight_map": {"w": "../x.pt"}}'), "index"),
    BadFile("index of a file that is absent", index(b'{"weight_map": {"w": "x.safetensors"}}'),
            "is not there"),
)  # fmt: skip


# --- settings and records -----------------------------------------------------------------------


def text_file(
    name: str, content: str | bytes, read: Callable[[Path], object]
) -> Callable[[Path], object]:
    return lambda folder: read(_table(folder, content, name))


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

BAD_FILES = (*TABLES, *EVENTS, *REGIONS, *RUNS, *CHECKPOINTS, *SETTINGS)
