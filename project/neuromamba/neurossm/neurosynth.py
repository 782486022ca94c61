"""The Neurosynth data base on disk, and association maps of its terms by NiMARE.

``<data_dir>/neurosynth/`` holds the four files of version 7; they are downloaded if none is there,
and reused after that. Their SHA-256 are noted in ``hashes.json`` when they are first used and
compared from then on. Maps of terms are kept in ``z_maps/``: one takes some 20 s on the whole data
base (Yarkoni et al. 2011; Salo et al. 2023).
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib

from neuromamba.common.atomic_files import atomic_path, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json_record
from neuromamba.training.hardware_flags import installed

FOLDER = "neurosynth"
_PREFIX = "data-neurosynth_version-7_"
FILES = {
    "coordinates": f"{_PREFIX}coordinates.tsv.gz",
    "metadata": f"{_PREFIX}metadata.tsv.gz",
    "features": f"{_PREFIX}vocab-terms_source-abstract_type-tfidf_features.npz",
    "vocabulary": f"{_PREFIX}vocab-terms_vocabulary.txt",
}
THRESHOLD = 0.001  # tf-idf from which a study is about a term: Neurosynth's own
_COLUMN = "terms_abstract_tfidf__"


def require_nimare() -> None:
    """Say how to install it.

    Raises:
        UserInputError: it is not there.
    """
    if not installed("nimare"):
        raise UserInputError(
            "run_cpa_analysis.py: NiMARE is not installed; pip install -r "
            "project/neurossm/requirements.txt."
        )


def database(data_dir: Path) -> Database:
    """The data base below a folder, downloaded if none of its files is there.

    Raises:
        UserInputError: files are missing, damaged or not those of the first use, or the download
            has failed.
    """
    require_nimare()
    folder = data_dir / FOLDER
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if len(missing) == len(FILES):
        _download(data_dir, folder)
    elif missing:
        raise UserInputError(
            f"--data_dir: '{folder}' lacks {', '.join(missing)}. Copy all four files there, or "
            f"remove the others to download them again."
        )
    hashes = {name: _sha256(folder / name) for name in FILES.values()}
    noted = folder / "hashes.json"
    if noted.is_file():
        before = read_json_record(noted, "Remove it.", "--data_dir")
        other = [name for name, value in hashes.items() if before.get(name) != value]
        if other:
            raise UserInputError(
                f"--data_dir: {', '.join(other)} in '{folder}' changed since the first use. Copy "
                f"the files again, or remove hashes.json if the change was meant."
            )
    else:
        write_text_atomically(noted, json.dumps(hashes, indent=1) + "\n")
    return Database(folder, hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:16])


def _download(data_dir: Path, folder: Path) -> None:
    from nimare.extract import fetch_neurosynth

    print(f"downloading Neurosynth version 7 to {folder}", flush=True)
    try:
        with _quiet():
            fetch_neurosynth(
                data_dir=str(data_dir),
                version="7",
                source="abstract",
                vocab="terms",
                return_type="files",
            )
    except Exception as error:  # urllib, requests and NiMARE raise their own
        raise UserInputError(
            f"--data_dir: Neurosynth could not be downloaded ({type(error).__name__}). Copy "
            f"{', '.join(FILES.values())} to '{folder}'."
        ) from None
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        raise UserInputError(f"--data_dir: the download to '{folder}' lacks {', '.join(missing)}.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """NiMARE announces that this format will go, and logs each file and transform."""
    loggers = [logging.getLogger(name) for name in ("nimare", "numba")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class Database:
    """The data base.

    Attributes:
        folder: of its files.
        hash: of all of them.
    """

    folder: Path
    hash: str

    @cached_property
    def dataset(self) -> Any:
        """NiMARE's ``Dataset``."""
        from nimare.io import convert_neurosynth_to_dataset

        files = {key: str(self.folder / name) for key, name in FILES.items()}
        annotations = {key: files[key] for key in ("features", "vocabulary")}
        try:
            with _quiet():
                return convert_neurosynth_to_dataset(
                    files["coordinates"], files["metadata"], annotations
                )
        except Exception as error:  # pandas, scipy and NiMARE raise their own
            raise UserInputError(
                f"--data_dir: '{self.folder}' cannot be read ({' '.join(str(error).split())}). "
                f"Copy the files again."
            ) from None

    @cached_property
    def vocabulary(self) -> list[str]:
        """All terms."""
        text = (self.folder / FILES["vocabulary"]).read_text(encoding="utf-8")
        return text.splitlines()

    def known(self, terms: list[str], where: str) -> list[str]:
        """Select the terms that the vocabulary has, and report the others.

        Raises:
            UserInputError: it has none of them.
        """
        known = [term for term in terms if term in self.vocabulary]
        for term in terms:
            if term not in known:
                close = difflib.get_close_matches(term, self.vocabulary, n=3)
                hint = f"; it has {', '.join(close)}" if close else ""
                print(f"note: {where}: '{term}' is not in the vocabulary{hint}.", flush=True)
        if not known:
            raise UserInputError(
                f"--terms: {where}: none of {', '.join(terms)} is in the vocabulary of "
                f"'{self.folder}'."
            )
        return known

    def z_map(self, term: str) -> nib.Nifti1Image:
        """Association map of a term: studies about it against all others (MKDA, chi square)."""
        name = re.sub(r"[^a-z0-9]+", "-", term.lower())
        digest = hashlib.blake2b(term.encode(), digest_size=4).hexdigest()
        path = self.folder / "z_maps" / f"{name}_{digest}_{self.hash}.nii.gz"
        if not path.is_file():
            image = self._associate(term)
            path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
        return nib.load(path)  # type: ignore[return-value]

    def _associate(self, term: str) -> nib.Nifti1Image:
        from nimare.meta.cbma.mkda import MKDAChi2

        print(f"association map of '{term}'", flush=True)
        with _quiet():
            about = self.dataset.get_studies_by_label(
                labels=[_COLUMN + term], label_threshold=THRESHOLD
            )
            others = sorted(set(self.dataset.ids) - set(about))
            if not len(about) or not others:
                raise UserInputError(
                    f"--terms: {len(about)} of {len(self.dataset.ids)} studies are about '{term}'; "
                    f"a map needs some that are and some that are not."
                )
            result = MKDAChi2().fit(self.dataset.slice(about), self.dataset.slice(others))
            image: nib.Nifti1Image = result.get_map("z_desc-association")
        return image
