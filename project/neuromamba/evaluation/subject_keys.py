"""Numbers that stand for names of subjects, so that tensors can carry them."""

from __future__ import annotations

import hashlib


def subject_key(name: str, dataset: int = 0) -> int:
    """Return a number for a subject of the run's n-th data set that is the same on every rank."""
    digest = hashlib.blake2b(f"{dataset}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # fits int64
