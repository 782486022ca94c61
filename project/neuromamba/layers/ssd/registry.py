"""The registry of the scan's backends, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import SSD_BACKENDS
from neuromamba.layers.ssd.types import BlockFunction, MixerFunction

logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    """A way to compute the mixer.

    Attributes:
        name: value of ``--ssd_backend``.
        run: (zxbcdt [L, 2I + 2N + H], parameters, lengths) -> [L, I].
        why_not: given a device, None if the backend works there, else the reason and the remedy.
        block: (x [L, D], parameters, lengths, sparing) -> [L, D], a whole residual block
            ``x + out_proj(mixer(in_proj(rmsnorm(x))))`` in one go, for backends that gain by it;
            ``sparing`` asks to keep no more for the backward pass than activation checkpointing.
        detail: a word on how it will run here, for the log.
        doubt: given a device on which the backend works, None if its results are right there, else
            what is wrong: "auto" does not take it then.
    """

    name: str
    run: MixerFunction
    why_not: Callable[[torch.device], str | None]
    block: BlockFunction | None
    detail: Callable[[], str] | None
    doubt: Callable[[torch.device], str | None] | None = None


BACKENDS: dict[str, Backend] = {}
_announced: set[tuple[str, str]] = set()


def register_backend(
    name: str,
    why_not: Callable[[torch.device], str | None] = lambda device: None,
    block: BlockFunction | None = None,
    detail: Callable[[], str] | None = None,
    doubt: Callable[[torch.device], str | None] | None = None,
) -> Callable[[MixerFunction], MixerFunction]:
    """Decorator that enters a mixer function into ``BACKENDS`` under ``name``."""
    assert name in SSD_BACKENDS and name not in BACKENDS, name

    def enter(run: MixerFunction) -> MixerFunction:
        BACKENDS[name] = Backend(name, run, why_not, block, detail, doubt)
        return run

    return enter


def select_backend(requested: str, device: torch.device) -> Backend:
    """Choose the backend for a device; ``auto`` takes the first of triton, cpu that works.

    And whose results are right there: see ``Backend.doubt``.

    The choice and its reason are logged once for each kind of device.

    Raises:
        UserInputError: the request names a backend that does not exist or does not work here.
    """
    look_up(requested, SSD_BACKENDS, "--ssd_backend")
    if requested == "auto":
        refused = []
        for name in ("triton", "cpu") if device.type == "cuda" else ("cpu",):
            chosen = BACKENDS[name]
            reason = chosen.why_not(device)
            if reason is None and chosen.doubt is not None:
                reason = chosen.doubt(device)
            if reason is None:
                break
            refused.append(f"{name}: {reason}")
        else:  # pragma: no cover - the portable backend works on every device
            raise AssertionError(refused)
        why = "; ".join([f"auto on {device.type}", *refused])
    else:
        chosen, why = BACKENDS[requested], "requested"
        reason = chosen.why_not(device)
        if reason is not None:
            raise UserInputError(f"--ssd_backend: '{requested}' cannot run on {device}: {reason}")
    if (chosen.name, device.type) not in _announced:
        _announced.add((chosen.name, device.type))
        how = f"{why}; {chosen.detail()}" if chosen.detail else why
        logger.info("state-space backend: %s (%s)", chosen.name, how)
    return chosen
