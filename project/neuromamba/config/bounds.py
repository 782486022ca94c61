"""Bounds that several configurations check."""

from __future__ import annotations

import math

from neuromamba.common.errors import UserInputError


def require_positive(flag: str, *values: float, strict: bool = True) -> None:
    """Check that numbers are finite and above 0, or with ``strict=False`` at least 0.

    Raises:
        UserInputError: names the flag and the number.
    """
    for value in values:
        if not math.isfinite(value) or value < 0 or (strict and value == 0):
            bound = "greater than 0" if strict else "0 or more"
            raise UserInputError(f"{flag}: got {value}, expected a number {bound}.")
