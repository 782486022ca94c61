"""Compile the C passes of the CPU backend, and find what was compiled; only a C compiler is needed.

One library for each instruction set worth having, so that a folder shared by unlike machines works
on all of them; ``find_library`` picks by what torch finds the CPU to have. Names carry a hash of
the source: a library of another version is never loaded.

Libraries are kept in ``built/`` beside the sources, or where that cannot be written in the cache
folder: ``$NEUROMAMBA_CACHE``, else ``$XDG_CACHE_HOME/neuromamba``, else ``~/.cache/neuromamba``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.user_cache import VARIABLE, user_cache_folder

HERE = Path(__file__).resolve().parent
SOURCES = ("kernels.c", "kernels_typed.h", "products.h", "block.h")
# Set to 0 (or false, no, off) to compute with the torch passes although the library is there.
SWITCH = "NEUROMAMBA_NATIVE"
# torch.backends.cpu.get_cpu_capability() -> options, the best first. Spelt out flag by flag:
# -march=x86-64-v3 is unknown to compilers before 2021.
_AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
X86 = {"AVX512": _AVX512, "AVX2": _AVX2, "DEFAULT": []}
TUNING = {"AVX512": ["-mprefer-vector-width=512"]}  # unknown to older compilers
# No -ffast-math: NaN and infinity must come through.
COMMON = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]


def switched_off() -> bool:
    """Whether the user wants the torch passes."""
    return os.environ.get(SWITCH, "1").lower() in ("0", "false", "no", "off")


def package_folder() -> Path:
    """``built/`` beside the sources."""
    return HERE / "built"


def cache_folder() -> Path:
    """Where libraries go that cannot go into the package."""
    return user_cache_folder() / "kernels"


def folders() -> list[Path]:
    """Where libraries are looked for; the first that can be written takes new ones."""
    both = [package_folder(), cache_folder()]
    return both[::-1] if os.environ.get(VARIABLE) else both


def _digest() -> str:
    digest = hashlib.sha256(repr((COMMON, X86, TUNING)).encode())
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:12]


def _name(variant: str) -> str:
    return f"mixer-{platform.machine().lower()}-{variant.lower()}-{_digest()}.so"


def _variants() -> dict[str, list[str]]:
    return X86 if platform.machine().lower() in ("x86_64", "amd64") else {"DEFAULT": []}


class Built(NamedTuple):
    """A library that is still what the compiler wrote.

    Attributes:
        path: of the library.
        openmp: whether several threads share the work.
    """

    path: Path
    openmp: bool


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def built(variant: str, folder: Path) -> Built | None:
    """The library of a variant; None if it is missing, untrusted, of another source, or damaged.

    Damage (a full disk, an interrupted copy) must be found here: loading such a file can kill the
    process.
    """
    path = folder / _name(variant)
    if why_untrusted(folder, path, _record(path)):
        return None
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        if record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
            return Built(path, bool(record["openmp"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def why_untrusted(*paths: Path) -> str:
    """Why somebody else could have written what would be loaded; "" if nobody could.

    A library is code. It, its record and its folder must belong to the user or to root (in the
    package also to whom the package belongs, whose code runs anyway), be no links, and not be
    writable by group or others.

    Args:
        paths: those that are not there are left out.
    """
    if not hasattr(os, "geteuid"):  # Windows
        return ""
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            continue
        owners = {os.geteuid(), 0}
        if package_folder() in (path, path.parent):
            owners.add(os.stat(__file__).st_uid)
        if stat.S_ISLNK(found.st_mode):
            if path.is_dir():  # a folder may be kept elsewhere; what it leads to is looked at
                found = os.stat(path)
            else:
                return f"{path} is a link"
        if found.st_uid not in owners:
            return f"{path} belongs to another user ({found.st_uid})"
        if found.st_mode & 0o022:
            return f"{path} can be written by others (chmod go-w '{path}')"
    return ""


def untrusted_library() -> str:
    """Why a library that is there is not loaded; "" if there is none, or it may be loaded."""
    for name in _variants():
        for folder in folders():
            path = folder / _name(name)
            if path.exists() and (why := why_untrusted(folder, path, _record(path))):
                return why
    return ""


def find_library(capability: str) -> Built | None:
    """The library to load on a CPU of this capability, or None if none was built that fits."""
    names = list(_variants())
    start = names.index(capability) if capability in names else len(names) - 1
    places = folders()
    candidates = (built(name, folder) for name in names[start:] for folder in places)
    return next((found for found in candidates if found), None)


def find_compiler() -> list[str]:
    """The command of CC if that is set (it may have arguments), else cc, gcc or clang.

    Raises:
        RuntimeError: there is none.
    """
    if os.environ.get("CC"):
        command = shlex.split(os.environ["CC"])
        if command and shutil.which(command[0]):
            return command
        raise RuntimeError(f"CC={os.environ['CC']}: there is no such program")
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise RuntimeError("no C compiler (cc, gcc, clang; or name one: CC)")


def _compile(compiler: list[str], options: list[str], target: Path) -> str | None:
    """Compile into ``target`` and note its hash; None, or the compiler's last line."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        half = Path(folder) / target.name
        for threads in (["-fopenmp"], []):  # without OpenMP one thread does the work
            command = [*compiler, *COMMON, *options, *threads, str(HERE / SOURCES[0])]
            done = subprocess.run(
                [*command, "-o", str(half), "-lm"], capture_output=True, text=True, check=False
            )
            if done.returncode == 0 and half.is_file():
                digest = hashlib.sha256(half.read_bytes()).hexdigest()
                record = {"sha256": digest, "openmp": bool(threads), "compiler": compiler}
                os.chmod(half, 0o755)
                os.replace(half, target)
                half.write_text(json.dumps(record), encoding="utf-8")
                os.chmod(half, 0o644)
                os.replace(half, _record(target))
                return None
    return (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]


def _writable_folder() -> Path:
    """The first of ``folders`` in which a file can be made; it is made if absent.

    Raises:
        OSError: there is none.
    """
    *first, last = folders()
    for folder in first:
        with contextlib.suppress(OSError):
            return _made(folder)
    return _made(last)


def _made(folder: Path) -> Path:
    before = os.umask(0o022)  # whatever it was: others must not be able to write here
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    found = folder.stat()
    if hasattr(os, "geteuid") and found.st_uid == os.geteuid() and found.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    if why := why_untrusted(folder):
        raise PermissionError(f"{why}; name another folder with {VARIABLE}")
    tempfile.TemporaryFile(dir=folder).close()
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process compiles into the folder.

    Without a lock (Windows, some network file systems) two would do the same work, no harm done:
    every file is put in place whole.
    """
    with open(folder / ".lock", "a", encoding="utf-8") as stream:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back


def build(force: bool = False) -> list[str]:
    """Compile what is missing, damaged or of one thread only; the lines to show.

    Raises:
        RuntimeError: nothing could be compiled, and why.
        OSError: there is no folder to write to.
    """
    if not force and (ready := _ready()):
        return [ready]
    compiler = find_compiler()
    folder = _writable_folder()
    with _alone(folder):
        if not force and (ready := _ready()):  # another process has been at work
            return [ready]
        return _build(compiler, folder)


def _ready() -> str:
    """The line to show where all variants are in one folder, with OpenMP; else ""."""
    variants = _variants()
    for folder in folders():
        if all((found := built(name, folder)) and found.openmp for name in variants):
            return f"ready: {', '.join(variants).lower()} in {folder}"
    return ""


def _build(compiler: list[str], folder: Path) -> list[str]:
    variants = _variants()
    done: list[str] = []
    failed: list[str] = []
    for name, options in variants.items():
        path = folder / _name(name)
        problem = _compile(compiler, [*options, *TUNING.get(name, ())], path)
        if problem and name in TUNING:
            problem = _compile(compiler, options, path)
        found = built(name, folder)
        if problem or found is None:
            failed.append(f"{name.lower()}: {problem}")
        else:
            done.append(name.lower() + ("" if found.openmp else " (one thread: no OpenMP)"))
    if not done:
        raise RuntimeError(f"{' '.join(compiler)}: {'; '.join(failed)}")
    if folder == package_folder():  # several versions of the package may share the cache
        current = {_name(name) for name in variants}
        for old in folder.glob("mixer-*"):
            if old.name.removesuffix(".json") not in current:
                old.unlink(missing_ok=True)
    return [f"built with {' '.join(compiler)} in {folder}: {', '.join(done)}", *failed]


def build_for_run(
    accelerator: str, ssd_backend: str, report: Callable[[str], None] = print
) -> None:
    """Compile the passes where none were, if a run computes with them; commands call it first.

    Args:
        accelerator: of the run, "cpu" or another.
        ssd_backend: what the user asks for, of ``SSD_BACKENDS``.
        report: see ``build_if_missing``.
    """
    if accelerator == "cpu" and ssd_backend in ("auto", "cpu"):
        build_if_missing(report)


def build_if_missing(report: Callable[[str], None] = print) -> None:
    """Compile the passes where none were, as a run on a CPU does before it starts.

    It never fails: without a compiler, or without a folder to write to, the torch passes run, and
    what is missing is reported.

    Args:
        report: receives a line before anything is compiled, and one if that fails.
    """
    if switched_off() or any(built(name, each) for name in _variants() for each in folders()):
        return
    try:
        find_compiler()
        report(
            f"compiling the C passes of the CPU backend, once, in seconds ({SWITCH}=0 does without)"
        )
        build()
    except (RuntimeError, OSError) as error:
        report(
            f"C passes not compiled ({error}); plain torch takes their place, 2 to 3 times slower. "
            f"Install a C compiler (Debian, Ubuntu: gcc), or set {SWITCH}=0."
        )
