"""State-space duality scan: one function, several backends.

Every module in this package is imported here, and a module that holds a backend registers it on
import; so adding a kernel means adding a file.
"""

from importlib import import_module
from pkgutil import iter_modules

from neuromamba.layers.ssd.api import mixer_core
from neuromamba.layers.ssd.registry import BACKENDS, Backend, select_backend
from neuromamba.layers.ssd.stateful import MixerState, initial_state, mix_piece
from neuromamba.layers.ssd.types import BlockParams, MixerParams

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BACKENDS",
    "Backend",
    "BlockParams",
    "MixerParams",
    "MixerState",
    "initial_state",
    "mix_piece",
    "mixer_core",
    "select_backend",
]
