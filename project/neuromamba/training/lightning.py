"""Load Lightning without what it loads besides: half the time that a training takes to start.

Lightning imports torchmetrics, and this imports whatever its metrics of text, sound and pictures
can use: transformers (where it is installed), scipy's signals and matplotlib. We use none of them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from typing import Any

_BESIDES = ("matplotlib", "scipy", "transformers")


def load_lightning() -> None:
    """Import ``pytorch_lightning``; nothing happens where its torchmetrics is loaded already.

    For processes that are ours, thus for commands: torchmetrics keeps in mind that the packages
    beside it are absent. Garbage is not searched for meanwhile, since nothing of it would be, nor
    is what is loaded ever searched again.
    """
    if "torchmetrics" in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        with absent_for_lightning(_BESIDES):
            import pytorch_lightning  # noqa: F401
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


@contextmanager
def absent_for_lightning(packages: tuple[str, ...]) -> Iterator[None]:
    """Have Lightning's own questions whether these packages are installed answered with no.

    ``import`` finds them as ever. With a release of lightning_utilities that asks otherwise
    nothing changes.
    """
    import lightning_utilities.core.imports as questions

    asked: dict[str, Any] = {name: getattr(questions, name, None) for name in _ANSWERS}
    if None not in asked.values():
        for name, answer in _ANSWERS.items():
            setattr(questions, name, _unless(packages, asked[name], answer))
    try:
        yield
    finally:
        if None not in asked.values():
            for name, function in asked.items():
                setattr(questions, name, function)
            for name in ("package_available", "module_available"):
                getattr(getattr(questions, name), "cache_clear", lambda: None)()


def _no_version(package: str) -> Any:
    raise PackageNotFoundError(package)


# Functions of the standard library under the names that lightning_utilities gives them -> answer.
_ANSWERS: dict[str, Any] = {"find_spec": lambda package: None, "_version": _no_version}


def _unless(packages: tuple[str, ...], function: Any, answer: Any) -> Any:
    return lambda name, *more: answer(name) if name in packages else function(name, *more)
