"""Embeddings as Parquet: a file per scan when it is done, and all of them put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import atomic_path
from neuromamba.inference.embed import Embedding
from neuromamba.inference.output_folder import SCANS, OutputFolder
from neuromamba.inference.sources import ScanFile

EMBEDDINGS = "embeddings.parquet"


def _part(folder: OutputFolder, name: str) -> Path:
    return folder.path / SCANS / f"{name}.parquet"


def keep_embedding(folder: OutputFolder, scan: ScanFile, embedding: Embedding) -> Mapping[str, Any]:
    """Write the rows of a scan; returns what its record says of them."""
    with atomic_path(_part(folder, scan.name)) as temporary:
        embedding.to_parquet(temporary)
    return {"rows": len(embedding.values), "features": embedding.values.shape[1]}


def write_embeddings(folder: OutputFolder, records: Sequence[Mapping[str, Any]]) -> Path:
    """Put the rows of all scans into one file, one scan in memory at a time; returns its path.

    Nothing is written if no scan has rows.
    """
    import pyarrow.parquet

    path = folder.path / EMBEDDINGS
    parts = [_part(folder, record["scan"]) for record in records if record["result"]]
    if not parts:
        return path
    with (
        atomic_path(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, pyarrow.parquet.read_schema(parts[0])) as writer,
    ):
        for part in parts:
            writer.write_table(pyarrow.parquet.read_table(part))
    return path
