#!/usr/bin/env bash
# Fetches what benchmarks/gpu_check.sh may miss on a GPU machine without internet, into
# benchmarks/gpu_wheels/ (ignored by git, 4 MB), for Python GPU_PYTHON (default 3.12) on Linux.
#
#   bash benchmarks/gpu_wheels.sh        or: make gpu-wheels
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PY=${PYTHON:-${NEUROMAMBA_VENV_PATH:-$ROOT/.venv}/bin/python}
TARGET=$ROOT/benchmarks/gpu_wheels
mkdir -p "$TARGET"
cd "$ROOT"

fetch() { "$PY" -m pip download -q --no-deps --disable-pip-version-check -d "$TARGET" "$@"; }

# Pure Python or built for the machine: whatever such machines rarely have. torch, Triton, numpy,
# h5py and the packages around them are taken from the machine.
wheels=(nibabel einops pytorch-lightning torchmetrics lightning-utilities)
echo "==> wheels for Python ${GPU_PYTHON:-3.12}: ${wheels[*]}"
fetch --only-binary=:all: --python-version "${GPU_PYTHON:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    -c constraints.txt "${wheels[@]}"

# As source: both are built there, against its torch. Asking for their metadata runs their setup.py,
# which must not look for a compiler.
echo "==> sources: mamba-ssm, causal-conv1d"
"$PY" -m pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel packaging
MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
    fetch --no-build-isolation --no-binary=:all: mamba-ssm causal-conv1d

echo "==> the MNI152 brain mask"
"$PY" - "$TARGET/mni_mask_96.npz" <<'PY'
import sys

import numpy as np

from neuromamba.planning.flops import mni_mask

np.savez_compressed(sys.argv[1], bits=np.packbits(mni_mask((96, 96, 96))[0]))
PY
du -sh "$TARGET"
