"""A clock for tests: its seconds are those that a test lets pass, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


class OwnClock:
    """Stands for the module ``time`` in a module that is tested; time passes in ``sleep`` only.

    Args:
        meanwhile: called in every ``sleep``, with the seconds since the start.
    """

    strftime = staticmethod(time.strftime)
    time = staticmethod(time.time)  # to be compared with times of files

    def __init__(self, meanwhile: Callable[[float], object] = lambda now: None) -> None:
        self.now, self._meanwhile = 0.0, meanwhile

    def perf_counter(self) -> float:
        """Seconds since the start."""
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.now += seconds
        self._meanwhile(self.now)
