"""Mutates small valid files of every kind and reads them: a result, or one line, and nothing else.

    python -m tests.helpers.fuzz_readers FOLDER ROUNDS SEED

A process of its own, with limits on memory and time, so that a crash is seen as a signal.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
import pandas
import torch
from safetensors.torch import save as save_safetensors

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.checkpoints.paths import safetensors_in
from neuromamba.common.errors import UserInputError
from neuromamba.common.text import spelling
from neuromamba.config.serialise import read_yaml
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.ingest.nifti import NiftiRun
from neuromamba.data.ingest.repetition_time import read_sidecar_tr
from neuromamba.data.regions.concatenated import read_concatenated
from neuromamba.data.regions.safe_loading import load_objects
from neuromamba.data.regions.scan_files import ScanFile, read_scans
from neuromamba.data.regions.series_files import read_series_file
from neuromamba.data.store.reader import RunFile
from neuromamba.evaluation.result_files import read_predictions
from tests.helpers.store_files import write_store_file

MEMORY = 4 << 30  # bytes of addresses; torch alone takes most of them
LEAP = 200 << 20  # bytes in use that no small file may need
SECONDS = 20  # of one file: a hang


class Kind(NamedTuple):
    """A kind of file: name, an undamaged one, and what reads it to its end."""

    name: str
    content: bytes
    read: Callable[[Path], Any]


def scans() -> list[dict[str, Any]]:
    return [
        {
            "roiTimeseries": np.arange(12, dtype=np.float32).reshape(3, 4) + k,
            "pheno": {"subjectId": f"sub-{k}", "age": np.float64(30 + k), "site": np.str_("x")},
        }
        for k in range(2)
    ]


def read_series(path: Path) -> None:
    for scan in read_scans(ScanFile(path), None):
        spelling(scan.subject)
        for value in scan.pheno.values():
            spelling(value)
        with contextlib.suppress(ValueError):  # rows of different lengths
            np.asarray(scan.series)


def read_run(path: Path) -> None:
    run = RunFile(path)
    try:
        run.read(range(run.header.n_frames))
        run.raw_layout()
        run.voxel_statistics()
        run.content_sha256()
        repr(run.vox)
    finally:
        run.close()


def read_nifti(path: Path) -> None:
    for frame in NiftiRun(path).frames():
        frame.sum()


def kinds(folder: Path) -> list[Kind]:
    """All of them, small."""
    array = io.BytesIO()
    np.save(array, np.array(scans(), dtype=object), allow_pickle=True)
    numbers = io.BytesIO()
    np.save(numbers, np.arange(12.0).reshape(3, 4))
    archive, packed = io.BytesIO(), io.BytesIO()
    arrays: dict[str, Any] = {"ts": np.ones((6, 2)), "length": [2, 4], "file_id": ["a", "b"]}
    np.savez(archive, **arrays)
    np.savez_compressed(packed, **arrays)
    columns = io.BytesIO()
    pandas.DataFrame({"a": [1.5, 2], "b": [3, 4.25]}).to_parquet(columns)
    write_store_file(
        folder / "run.h5",
        np.random.default_rng(0).normal(8000, 900, (6, 20)).astype(np.float32),
        np.arange(20),
        subject="sub-1",
        grid=(4, 4, 4),
        affine=np.diag([-3.0, 3, 3, 1]),
        tr=0.7,
    )
    weights = {"norm.weight": torch.ones(8), "output_layer.bias": torch.arange(4.0)}
    metadata = {"model": {"depth": 1, "embed_dim": 8}, "data": {"config": {}, "tr": [0.7]}}
    entries = {"format": "pt", "neuromamba": json.dumps(metadata)}
    checkpoint, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": weights, "neuromamba": metadata, "epoch": 3}, checkpoint)
    torch.save(weights, legacy, _use_new_zipfile_serialization=False)
    image = nibabel.Nifti1Image(np.arange(4**4, dtype=np.int16).reshape([4] * 4), np.eye(4))
    image.set_qform(np.eye(4), code=1)
    index = json.dumps({"weight_map": {"a": "a.safetensors"}}).encode()

    def read_index(path: Path) -> None:
        path.replace(path.with_name("model.safetensors.index.json"))
        safetensors_in(path.parent, "MODEL")

    (folder / "a.safetensors").write_bytes(b"x")
    return [
        *(
            Kind(f"p{n}.pickle", pickle.dumps(scans(), protocol=n), read_series)
            for n in (0, 2, 4, 5)
        ),
        Kind("objects.npy", array.getvalue(), read_series),
        Kind("numbers.npy", numbers.getvalue(), lambda path: load_objects(path, "--data_file")),
        Kind("run.h5", (folder / "run.h5").read_bytes(), read_run),
        Kind("weights.safetensors", save_safetensors(weights, entries), read_checkpoint),
        Kind("zip.ckpt", checkpoint.getvalue(), read_checkpoint),
        Kind("legacy.pt", legacy.getvalue(), read_checkpoint),
        Kind("image.nii", image.to_bytes(), read_nifti),
        Kind("index.json", index, read_index),
        Kind("sidecar.json", b'{"RepetitionTime": 0.72, "a": [1, {"b": null}]}', read_sidecar_tr),
        Kind(
            "flags.yaml", b"a: &x [1, 2]\nb: *x\nc: {d: 'e', f: 1.5}\n", lambda p: read_yaml(p, "x")
        ),
        Kind("scans.npz", archive.getvalue(), lambda path: read_concatenated(path, "SOURCE")),
        Kind("packed.npz", packed.getvalue(), lambda path: read_concatenated(path, "SOURCE")),
        Kind("series.1D", b"#1\t#2\n1.5\t2\n3\t4.25\n", read_series_file),
        Kind("series.csv", b"a,b\n1.5,2\n3,4.25\n", read_series_file),
        Kind("series.parquet", columns.getvalue(), read_series_file),
        Kind("table.csv", b"subject,age\nsub-1,30\nsub-2,31.5\n", read_table),
        Kind(
            "predictions.csv",
            b"subject,window,target,prob_0,prob_1\na,0,1,0.2,0.8\nb,0,0,0.6,0.4\n",
            lambda path: read_predictions(path, ""),
        ),
    ]


EXTREME = (
    b"\xff" * 4,
    b"\x00" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\x00\x00\x00\x80",
    b"\xff\xff\xff\x7f",
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, extreme numbers, pieces cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        piece = bytes(data[at : at + rng.randint(1, 40)])
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice(EXTREME)
            data[at : at + len(number)] = number
        elif kind == 3:
            del data[at : at + len(piece)]
        elif kind == 4:
            data[at:at] = piece * rng.randint(1, 50)
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            del data[at:]
    return bytes(data)


def attempt(kind: Kind, path: Path, content: bytes) -> str:
    """Read; "read", "refused", or what went wrong."""
    path.write_bytes(content)
    signal.alarm(SECONDS)
    try:
        kind.read(path)
    except UserInputError as error:
        text = str(error)
        if "\n" in text or len(text) > 5000:
            return f"no line: {text[:300]!r}"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return f"cannot be printed: {text[:300]!r}"
        return "refused"
    except BaseException:  # a signal's, too: whatever is no answer for a user
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return "read"


def main() -> int:
    folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def hung(*_: Any) -> None:
        raise TimeoutError(f"a file took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, hung)
    wrong, peak = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in kinds(folder):
        place = folder / kind.name.replace(".", "_")
        place.mkdir()
        (place / "a.safetensors").write_bytes(b"x")
        path = place / kind.name
        answers = [attempt(kind, path, kind.content)]
        assert answers == ["read"], (kind.name, answers)
        for number in range(rounds):
            rng = random.Random(f"{seed} {kind.name} {number}")
            # Told first: after a crash the last line says which file it was.
            print(f"trying {kind.name} {number}", file=sys.stderr, flush=True)
            answer = attempt(kind, path, mutated(kind.content, rng))
            answers.append(answer)
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            # HDF5 itself makes room for a text of any length that a file tells of, up to 4 GB.
            if now > peak + (LEAP >> 10) and kind.name != "run.h5":
                wrong += 1
                print(f"{kind.name} round {number} of seed {seed} took {now - peak >> 10} MB")
            peak = max(peak, now)
            if answer not in ("read", "refused"):
                wrong += 1
                print(f"{kind.name} round {number} of seed {seed}:\n{answer}", flush=True)
        print(f"{kind.name}: {answers.count('refused')} refused, {answers.count('read')} read")
    print(f"peak {peak >> 10} MB, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    h5py._errors.silence_errors()
    sys.exit(main())
