"""Compiles the C passes of the mixer: setup_env.sh calls it, a C compiler is all it needs.

    python project/module/models/ssd/native/build.py [--force]

One library for each instruction set worth having, so that a folder shared by unlike machines works
on all of them; ``library_path`` picks by what torch finds the CPU to have. Names carry a hash of
the source: a library of another version is never loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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


def library_path(capability: str) -> Path | None:
    """The library to load on a CPU of this capability, or None if none was built that fits."""
    names = list(_variants())
    start = names.index(capability) if capability in names else len(names) - 1
    for variant in names[start:]:
        path = BUILT / _name(variant)
        if path.is_file():
            return path
    return None


def find_compiler() -> str | None:
    """CC if set, else cc, gcc or clang."""
    candidates = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def _compile(compiler: str, options: list[str], target: Path) -> str | None:
    """Compile into ``target``; None, or the compiler's last line."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        half = Path(folder) / target.name
        for threads in (["-fopenmp"], []):  # without OpenMP one thread does the work
            command = [compiler, *COMMON, *options, *threads, str(HERE / SOURCES[0])]
            done = subprocess.run(
                [*command, "-o", str(half), "-lm"], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                os.replace(half, target)
                return None
    return (done.stderr.strip().splitlines() or ["no message"])[-1]


def build(force: bool = False) -> list[str]:
    """Compile what is missing; the lines to show.

    Raises:
        RuntimeError: nothing could be compiled, and why.
    """
    compiler = find_compiler()
    wanted = {name: BUILT / _name(name) for name in _variants()}
    if not force and all(path.is_file() for path in wanted.values()):
        return [f"ready: {', '.join(map(str.lower, wanted))}"]
    if compiler is None:
        raise RuntimeError("no C compiler (CC, cc, gcc, clang)")
    BUILT.mkdir(exist_ok=True)
    done: list[str] = []
    failed: list[str] = []
    for name, path in wanted.items():
        options = _variants()[name]
        problem = _compile(compiler, [*options, *TUNING.get(name, ())], path)
        if problem and name in TUNING:
            problem = _compile(compiler, options, path)
        if problem:
            failed.append(f"{name.lower()}: {problem}")
        else:
            done.append(name.lower())
    if not done:
        raise RuntimeError(f"{compiler}: {'; '.join(failed)}")
    for old in BUILT.glob("mixer-*.so"):
        if old not in wanted.values():
            old.unlink(missing_ok=True)
    return [f"built with {compiler}: {', '.join(done)}", *failed]


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
