"""One run at a time in a run folder, also where several machines share it.

The lock is a file made exclusively, which works on network file systems, too. While the run lives,
a thread touches it; so a process on another machine can tell whether the run is still there.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from neuromamba.common.atomic_files import process_runs, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json

FILE = "run.lock"


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: machine, process, and the local time at which it was taken."""

    host: str
    pid: int
    since: str


class RunLock:
    """Held by the first rank of a run, from ``take`` to ``release``.

    Args:
        flag: names the folder, for a message.
        run_dir: of the run.
        every: seconds between two touches.
        silence: seconds without a touch after which a lock is taken over. A client of NFS may
            show times that are a minute old.
    """

    def __init__(
        self, flag: str, run_dir: Path, *, every: float = 15.0, silence: float = 120.0
    ) -> None:
        self.flag, self.path = flag, run_dir / FILE
        self.every, self.silence = every, silence
        self.owner = Owner(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
        self._released = threading.Event()
        self._held = False

    def take(self) -> str:
        """Take the lock and return its path; "" if there is no folder to hold yet.

        A lock is taken over at once if its process is gone from this machine, and else after
        ``silence``: who comes waits that long for a touch.

        Raises:
            UserInputError: another run holds it, or the folder cannot be written.
        """
        if self._held or not self.path.parent.is_dir():
            return str(self.path) if self._held else ""
        while not self._make():
            if self._is_abandoned() and self._take_over():
                break
        self._held = True
        threading.Thread(target=self._touch, daemon=True).start()
        return str(self.path)

    def release(self) -> None:
        """Give the lock back, if it is held."""
        self._released.set()
        if self._held and self._read() == self.owner:
            self.path.unlink(missing_ok=True)
        self._held = False

    def _make(self) -> bool:
        try:
            with open(self.path, "x", encoding="utf-8") as stream:
                stream.write(self._text())
        except FileExistsError:
            return False
        except OSError as error:
            raise UserInputError(
                f"{self.flag}: cannot write to '{self.path.parent}' ({error.strerror}). Choose a "
                f"folder you can write."
            ) from None
        return True

    def _is_abandoned(self) -> bool:
        """Whether nobody holds the lock that is there; waits until that is certain.

        Raises:
            UserInputError: somebody does.
        """
        start, first = time.monotonic(), self._touched()
        while True:
            owner, touched = self._read(), self._touched()
            if touched is None:
                return False  # released
            here = owner is not None and owner.host == self.owner.host
            if here and owner is not None and not process_runs(owner.pid):
                return True
            fresh = here and time.time() - touched < self.silence
            if owner is not None and (fresh or touched != first):
                raise UserInputError(
                    f"{self.flag}: '{self.path.parent}' is in use by a run, process {owner.pid} on "
                    f"{owner.host}, since {owner.since}. Wait until it has ended, or choose "
                    f"another folder."
                )
            if time.monotonic() - start > self.silence:
                return True
            time.sleep(min(1.0, self.every / 3))

    def _take_over(self) -> bool:
        """Put this owner in the place of the old one; of several that do so the last counts."""
        write_text_atomically(self.path, self._text())
        time.sleep(min(1.0, self.every))
        return self._read() == self.owner

    def _text(self) -> str:
        return json.dumps(asdict(self.owner)) + "\n"

    def _read(self) -> Owner | None:
        """None if there is no lock, or not all of it yet."""
        try:
            return Owner(**parse_json(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _touched(self) -> float | None:
        """When the lock was last touched; None if there is none."""
        try:
            with open(self.path, "rb") as stream:  # opened: NFS then asks its server
                return os.fstat(stream.fileno()).st_mtime
        except OSError:
            return None

    def _touch(self) -> None:
        while not self._released.wait(self.every):
            try:
                if self._read() == self.owner:
                    os.utime(self.path)
            except OSError:
                continue  # the file system may recover
