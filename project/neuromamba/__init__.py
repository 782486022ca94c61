"""NeuroMamba and NeuroSSM: state-space foundation models of brain activity."""

import importlib.metadata
import os
import sys

__version__ = "0.1.0"

# TORCH_EXTENSIONS_DIR=$PWD/deepspeed, as the reference sets it, makes an empty folder "deepspeed/"
# that Python takes for a package; Lightning would then believe DeepSpeed is there and die on
# importing from it. None in sys.modules means "not importable".
try:
    importlib.metadata.version("deepspeed")
except importlib.metadata.PackageNotFoundError:
    sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]

# A training step is thousands of short parallel pieces, between which OpenMP's threads wait in a
# loop. Where other processes compute too, libgomp's 300,000 rounds of it outlast a time slice and
# keep the core from the very thread that is waited for: a step takes ten times as long
# (docs/performance.md). The runtime reads this when torch loads it, after this line; what the user
# has set counts.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"
