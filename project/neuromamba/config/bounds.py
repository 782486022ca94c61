"""Bounds that several configurations check."""

from __future__ import annotations

import math

from neuromamba.common.errors import UserInputError


def require_positive(flag: str, value: float, *, strict: bool = True) -> None:
    if not math.isfinite(value) or value < 0 or (strict and value == 0):
        bound = "greater than 0" if strict else "0 or more"
        raise UserInputError(f"{flag}: got {value}, expected a number {bound}.")
