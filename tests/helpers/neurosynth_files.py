"""A small data base in the format of Neurosynth, each of whose terms has a place in the brain."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neuromamba.neurossm.neurosynth import FILES, FOLDER

needs_nimare = pytest.mark.skipif(
    importlib.util.find_spec("nimare") is None,
    reason="NiMARE is not installed (pip install -r project/neurossm/requirements.txt)",
)


def write_database(
    data_dir: Path, terms: Sequence[str], studies: int = 12
) -> dict[str, np.ndarray]:
    """Write ``<data_dir>/neurosynth/``, so many studies a term; returns the places in mm [3]."""
    folder = data_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    places = {t: np.rint(rng.uniform([-45, -80, -10], [45, 40, 50])) for t in terms}
    peaks, papers = [], []
    weights = np.zeros((len(terms) * studies, len(terms)))
    for column, (_, place) in enumerate(places.items()):
        for _ in range(studies):
            study = len(papers)
            weights[study, column] = 0.2
            papers.append((study + 1, "n/a", "MNI", "title", "authors", 2000, "journal"))
            for x, y, z in place + np.rint(rng.normal(0, 4, (6, 3))):
                peaks.append((study + 1, 1, "1.", len(peaks), x, y, z))
    pd.DataFrame(peaks, columns=["id", "table_id", "table_num", "peak_id", "x", "y", "z"]).to_csv(
        folder / FILES["coordinates"], sep="\t", index=False
    )
    pd.DataFrame(
        papers, columns=["id", "doi", "space", "title", "authors", "year", "journal"]
    ).to_csv(folder / FILES["metadata"], sep="\t", index=False)
    sparse.save_npz(folder / FILES["features"], sparse.csc_matrix(weights))
    (folder / FILES["vocabulary"]).write_text("\n".join(terms))
    return places
