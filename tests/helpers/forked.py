"""Runs of one or several ranks in processes of their own, a second each instead of six.

One process imports everything and forks whenever ranks are asked for; these find each other as
under torchrun. ``Nursery`` is what a test holds, the rest runs in that process. Interruptions
happen at a place of the training rather than after a time: ``Blow``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.helpers.preloaded import preloaded_python  # noqa: E402

# Below those that Linux gives out (from 32768 on); processes begin at different places, go round.
_PORTS = (20_000 + (os.getpid() * 97 + number) % 12_000 for number in count())


@dataclass(frozen=True)
class Blow:
    """Something that happens to a run.

    Attributes:
        what: name of a signal that the process sends to itself; "nan" (the batch's tokens are no
            numbers); "infinite" (the loss is, while its gradient is not; ``on_before_backward``);
            "gradient" (the reverse; ``on_after_backward``); "full" (no file may grow beyond 8 kB
            from here on); or what is raised: "memory", "crash" (a bug) or "file" (a user's
            mistake).
        step: optimiser steps taken before; at the first batch after them.
        ranks: which ones it happens to.
        where: a hook of Lightning's callbacks.
    """

    what: str
    step: int
    ranks: tuple[int, ...] = (0,)
    where: str = "on_train_batch_start"


@dataclass(frozen=True)
class Ended:
    """What became of the ranks: exit statuses (negative: signals), and what they printed."""

    statuses: tuple[int, ...]
    said: tuple[str, ...]

    @property
    def text(self) -> str:
        """Of all ranks."""
        return "".join(self.said)


class Nursery:
    """Starts ranks; to be closed in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [preloaded_python(), __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )

    def run(
        self,
        argv: Sequence[str],
        ranks: int = 1,
        blows: Sequence[Blow] = (),
        seconds: float = 60,
        env: dict[str, str] | None = None,
    ) -> Ended:
        """Carry a command line out; who has not ended by then is killed, and the test fails."""
        self._count += 1
        logs = [str(self.folder / f"log{self._count}_{rank}.txt") for rank in range(ranks)]
        job = {
            "argv": [*argv, "--devices", str(ranks)],
            "logs": logs,
            "blows": [asdict(blow) for blow in blows],
            "seconds": seconds,
            "env": env or {},
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        said = tuple(Path(log).read_text() for log in logs)
        assert not answer["late"], f"ranks {answer['late']} did not end: {''.join(said)[-4000:]}"
        return Ended(tuple(answer["statuses"]), said)

    def close(self) -> None:
        """End the process that forks."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.kill()  # its children have ended
        self._server.wait(30)
        self._server.stdin.close()
        self._server.stdout.close()


# ------------------------------------------------------------------ in the process that forks


def serve() -> None:
    """Fork ranks for every line, wait for them, and answer with their statuses."""
    # What a run imports, also what it imports late.
    from neuromamba.commands import train as main  # noqa: F401
    from neuromamba.fmamba import command_line, evaluation, remarks, run  # noqa: F401

    with contextlib.suppress(ImportError):
        import deepspeed  # noqa: F401

        from neuromamba.training.zero_strategy import import_muon

        import_muon()
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # no search for garbage in the ranks visits, and so copies, what is loaded
    for line in sys.stdin:
        job = json.loads(line)
        port = _free_port()
        children = [_fork(job, rank, port) for rank in range(len(job["logs"]))]
        print(json.dumps(_wait(children, job["seconds"])), flush=True)


def _free_port() -> int:
    """A port that the ranks can meet at.

    Not one that the system gives out: before the ranks take it, it could go to a connection of
    another test.
    """
    for port in _PORTS:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _wait(children: list[int], seconds: float) -> dict[str, Any]:
    until, statuses = time.monotonic() + seconds, dict.fromkeys(children)
    late: list[int] = []
    while None in statuses.values():
        for number, child in enumerate(children):
            if statuses[child] is None:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    statuses[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > until and number not in late:
                    late.append(number)
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return {"statuses": [statuses[child] for child in children], "late": late}


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(job["logs"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(0)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if len(job["logs"]) > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "WORLD_SIZE": str(len(job["logs"])),
                "LOCAL_WORLD_SIZE": str(len(job["logs"])),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
            }
            from pytorch_lightning.utilities import rank_zero_only

            rank_zero_only.rank = rank  # as it would have been on import
        os.environ |= job["env"]
        _expect([Blow(**blow) for blow in job["blows"]], rank)
        from neuromamba.commands.train import main

        status = main(job["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _expect(blows: Sequence[Blow], rank: int) -> None:
    """Have the run's callbacks include one that deals the blows of this rank."""
    from neuromamba.fmamba import trainer as trainer_module

    mine = [blow for blow in blows if rank in blow.ranks]
    build = trainer_module.build_callbacks
    trainer_module.build_callbacks = lambda *args: [*build(*args), *map(_dealer, mine)]


def _dealer(blow: Blow) -> Any:
    from pytorch_lightning import Callback

    class Dealer(Callback):
        dealt = False

    def hook(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if not self.dealt and trainer.global_step >= blow.step:
            self.dealt = True
            _deal(blow, args)

    setattr(Dealer, blow.where, hook)
    return Dealer()


def _deal(blow: Blow, args: Sequence[Any]) -> None:
    import torch

    from neuromamba.common.errors import UserInputError

    if blow.what == "nan":
        args[1]["gain"] = [float("nan") for _ in args[1]["gain"]]
    elif blow.what == "infinite":
        args[1].data.add_(float("inf"))
    elif blow.what == "gradient":
        next(p for p in args[0].parameters() if p.grad is not None).grad[0] = float("nan")
    elif blow.what == "full":
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 1024, limits[1]))
    elif blow.what == "memory":
        torch.empty(10**15)
    elif blow.what == "crash":
        raise ValueError("a bug")
    elif blow.what == "file":
        raise UserInputError("--image_path: 'sub-01.h5' is damaged.")
    else:
        os.kill(os.getpid(), getattr(signal, blow.what))


if __name__ == "__main__":
    serve()
