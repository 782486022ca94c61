"""Compiles the C passes of the mixer: setup_env.sh calls it, a C compiler is all it needs.

    python project/module/models/ssd/native/build.py [--force]

One library for each instruction set worth having, so that a folder shared by unlike machines works
on all of them; ``find_library`` picks by what torch finds the CPU to have. Names carry a hash of
the source: a library of another version is never loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = ("kernels.c", "kernels_typed.h")
BUILT = HERE / "built"
# torch.backends.cpu.get_cpu_capability() -> options, the best first. Spelt out flag by flag:
# -march=x86-64-v3 is unknown to compilers before 2021.
_AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
X86 = {"AVX512": _AVX512, "AVX2": _AVX2, "DEFAULT": []}
TUNING = {"AVX512": ["-mprefer-vector-width=512"]}  # unknown to older compilers
# No -ffast-math: NaN and infinity must come through.
COMMON = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]


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
    """A library that was built here and is still what the compiler wrote.

    Attributes:
        path: of the library.
        openmp: whether several threads share the work.
    """

    path: Path
    openmp: bool


def _record(name: str) -> Path:
    return BUILT / f"{name}.json"


def built(variant: str) -> Built | None:
    """The library of a variant; None if it is missing, of another source, or damaged.

    Damage (a full disk, an interrupted copy) must be found here: loading such a file can kill the
    process.
    """
    path = BUILT / _name(variant)
    try:
        record = json.loads(_record(path.name).read_text(encoding="utf-8"))
        if record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
            return Built(path, bool(record["openmp"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def find_library(capability: str) -> Built | None:
    """The library to load on a CPU of this capability, or None if none was built that fits."""
    names = list(_variants())
    start = names.index(capability) if capability in names else len(names) - 1
    return next((found for name in names[start:] if (found := built(name))), None)


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
                os.replace(half, target)
                half.write_text(json.dumps(record), encoding="utf-8")
                os.replace(half, _record(target.name))
                return None
    return (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]


def build(force: bool = False) -> list[str]:
    """Compile what is missing, damaged or of one thread only; the lines to show.

    Raises:
        RuntimeError: nothing could be compiled, and why.
    """
    variants = _variants()
    if not force and all((found := built(name)) and found.openmp for name in variants):
        return [f"ready: {', '.join(variants).lower()}"]
    compiler = find_compiler()
    BUILT.mkdir(exist_ok=True)
    done: list[str] = []
    failed: list[str] = []
    for name, options in variants.items():
        path = BUILT / _name(name)
        problem = _compile(compiler, [*options, *TUNING.get(name, ())], path)
        if problem and name in TUNING:
            problem = _compile(compiler, options, path)
        found = built(name)
        if problem or found is None:
            failed.append(f"{name.lower()}: {problem}")
        else:
            done.append(name.lower() + ("" if found.openmp else " (one thread: no OpenMP)"))
    if not done:
        raise RuntimeError(f"{' '.join(compiler)}: {'; '.join(failed)}")
    current = {_name(name) for name in variants}
    for old in BUILT.glob("mixer-*"):
        if old.name.removesuffix(".json") not in current:
            old.unlink(missing_ok=True)
    return [f"built with {' '.join(compiler)}: {', '.join(done)}", *failed]


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--force", action="store_true", help="compile although it is there")
    args = parser.parse_args(argv)
    try:
        print("; ".join(build(args.force)))
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
