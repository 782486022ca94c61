"""NeuroMamba and NeuroSSM: state-space foundation models of brain activity."""

import importlib.metadata
import sys

# TORCH_EXTENSIONS_DIR=$PWD/deepspeed, as the reference sets it, makes an empty folder "deepspeed/"
# that Python takes for a package; Lightning would then believe DeepSpeed is there and die on
# importing from it. None in sys.modules means "not importable".
try:
    importlib.metadata.version("deepspeed")
except importlib.metadata.PackageNotFoundError:
    sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
