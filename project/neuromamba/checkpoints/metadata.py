"""The metadata of a checkpoint, as far as everybody who reads them relies on their form."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neuromamba.checkpoints.files import damaged
from neuromamba.common.errors import UserInputError
from neuromamba.common.plain_data import check_plain

_MAPPINGS = ("model", "data", "head", "downstream", "pretrain", "optim", "augment")
_TEXTS = ("orientation", "code_version")
_LISTS = ("tr", "spaces", "training_subjects", "training_units", "training_contents")
_MOST_CONTAINERS = 10_000_000  # keys of a hundred thousand subjects are few lists
_LARGEST_WINDOW = 1 << 34  # voxels times frames
_SLACK = 10_000_000  # values that a description may be off by


class Metadata(dict[str, Any]):
    """Plain containers; an entry that is missing is an error that names the checkpoint."""

    __slots__ = ("_where",)

    def __init__(self, found: Mapping[str, Any], where: str) -> None:
        super().__init__(found)
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise UserInputError(f"{self._where} is damaged: its metadata lack '{key}'. Use another.")

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a file that it is saved in holds a plain dictionary


def checked_metadata(
    found: Any, state: Mapping[str, Tensor], path: Path, flag: str
) -> dict[str, Any]:
    """Check the form of metadata, and that they describe a model of the size of the weights.

    Args:
        found: what the file holds.
        state: the weights; {} where they were not read.
        path: of the checkpoint.
        flag: the flag that named it.

    Raises:
        UserInputError: they are damaged.
    """
    if not isinstance(found, Mapping):
        raise damaged(path, flag, f"its metadata are {type(found).__name__}, not names with values")
    try:
        check_plain(found, _MOST_CONTAINERS)
        _check_form(found)
        if state:
            _check_size(found, state)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise damaged(path, flag, f"metadata: {reason[:200]}") from None
    where = f"{flag}: '{path}'"
    parts = {
        key: Metadata(value, where) if key in _MAPPINGS and isinstance(value, Mapping) else value
        for key, value in found.items()
    }
    return Metadata(parts, where) if parts else {}


def _check_form(found: Mapping[str, Any]) -> None:
    for key in _MAPPINGS:
        if found.get(key) is not None or key in ("model", "data"):
            _check_kind(found, key, Mapping)
    for key in _TEXTS:
        _check_kind(found, key, str)
    data = found.get("data", {})
    _check_kind(data, "config", Mapping)
    for key in _LISTS:
        if data.get(key) is not None:
            _check_kind(data, key, list | tuple)
    if not all(isinstance(tr, numbers.Real) for tr in data.get("tr") or ()):
        raise ValueError("'tr' holds something that is no number")
    scaling = found.get("target_scaling")
    if scaling is not None:
        finite = [isinstance(one, numbers.Real) and math.isfinite(one) for one in scaling]
        if finite != [True, True] or scaling[1] == 0:
            raise ValueError(f"'target_scaling' is {scaling!r}, expected mean and deviation")


def _check_kind(found: Mapping[str, Any], key: str, kind: Any) -> None:
    if key in found and not isinstance(found[key], kind):
        raise ValueError(f"'{key}' is {type(found[key]).__name__}")


def _check_size(found: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Compare the size that a model claims to have with the file's, before one is built."""
    model, head = found.get("model") or {}, found.get("head") or {}

    def of(part: Mapping[str, Any], key: str, usual: int) -> int:
        value = part.get(key, usual)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"'{key}' is {value!r}"[:80])
        return value

    width, expand = of(model, "embed_dim", 1), of(model, "expand", 2)
    state_size, taps = of(model, "d_state", 0), of(model, "d_conv", 4)
    patch = model.get("patch_size") or (1,)
    image = model.get("img_size") or (1,)
    for name, sizes in (("patch_size", patch), ("img_size", image)):
        if not all(isinstance(one, int) and one > 0 for one in sizes):
            raise ValueError(f"'{name}' is {sizes!r}"[:80])
    if math.prod(image) > _LARGEST_WINDOW:
        raise ValueError(f"'img_size' is {image!r}"[:80])
    block = width * (3 * expand * width + 2 * state_size) + expand * width * taps
    blocks = of(model, "depth", 1) + of(head, "mamba_depth", 0)
    token = math.prod(patch) * of(model, "in_chans", 1)
    claimed = blocks * block + 2 * width * token + width * of(head, "out_features", 1)
    holds = sum(value.numel() for value in state.values())
    if claimed > 8 * holds + _SLACK:
        raise ValueError(f"they describe a model of {claimed:,} values, the file holds {holds:,}")
