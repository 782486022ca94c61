"""NeuroMamba and NeuroSSM: state-space foundation models of brain activity.

The names below are the public face; each is imported when it is first used, so that ``import
neuromamba`` takes no torch::

    import neuromamba

    model = neuromamba.load("output/PROJECT/RUN")
    print(model.predict(model.prepare("sub-01_bold.nii.gz")))

The command line is ``neuromamba --help``.
"""

import importlib.metadata
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuromamba.common.version import VERSION as __version__

if TYPE_CHECKING:
    from neuromamba.checkpoints.io import read_checkpoint
    from neuromamba.common.errors import UserInputError
    from neuromamba.config.data import AugmentConfig, DataConfig
    from neuromamba.config.model import VARIANTS, HeadConfig, ModelConfig
    from neuromamba.config.tasks import TASKS
    from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
    from neuromamba.data.cohorts.registry import DATASETS
    from neuromamba.data.windows.data_module import FMRIDataModule
    from neuromamba.data.windows.run_data import RunData
    from neuromamba.fmamba.backbone import FMamba
    from neuromamba.fmamba.build import build_model, load_model_config
    from neuromamba.fmamba.downstream import DownstreamModule
    from neuromamba.fmamba.heads import build_head
    from neuromamba.fmamba.module import FMambaModule
    from neuromamba.fmamba.pretrain import PretrainModule
    from neuromamba.inference.loaded import LoadedModel
    from neuromamba.inference.open_model import load
    from neuromamba.inference.region_model import RegionModel
    from neuromamba.inference.sklearn_embedder import NeuroMambaEmbedder
    from neuromamba.neurossm.model import NeuroSSM, NeuroSSMConfig

# Name -> the module that defines it.
_DEFINED_IN = {
    "read_checkpoint": "neuromamba.checkpoints.io",
    "UserInputError": "neuromamba.common.errors",
    "AugmentConfig": "neuromamba.config.data",
    "DataConfig": "neuromamba.config.data",
    "VARIANTS": "neuromamba.config.model",
    "HeadConfig": "neuromamba.config.model",
    "ModelConfig": "neuromamba.config.model",
    "TASKS": "neuromamba.config.tasks",
    "DownstreamConfig": "neuromamba.config.training",
    "OptimConfig": "neuromamba.config.training",
    "PretrainConfig": "neuromamba.config.training",
    "DATASETS": "neuromamba.data.cohorts.registry",
    "FMRIDataModule": "neuromamba.data.windows.data_module",
    "RunData": "neuromamba.data.windows.run_data",
    "FMamba": "neuromamba.fmamba.backbone",
    "build_model": "neuromamba.fmamba.build",
    "load_model_config": "neuromamba.fmamba.build",
    "build_head": "neuromamba.fmamba.heads",
    "DownstreamModule": "neuromamba.fmamba.downstream",
    "FMambaModule": "neuromamba.fmamba.module",
    "PretrainModule": "neuromamba.fmamba.pretrain",
    "load": "neuromamba.inference.open_model",
    "RegionModel": "neuromamba.inference.region_model",
    "LoadedModel": "neuromamba.inference.loaded",
    "NeuroMambaEmbedder": "neuromamba.inference.sklearn_embedder",
    "NeuroSSM": "neuromamba.neurossm.model",
    "NeuroSSMConfig": "neuromamba.neurossm.model",
}
__all__ = [
    "DATASETS",
    "TASKS",
    "VARIANTS",
    "AugmentConfig",
    "DataConfig",
    "DownstreamConfig",
    "DownstreamModule",
    "FMRIDataModule",
    "FMamba",
    "FMambaModule",
    "HeadConfig",
    "LoadedModel",
    "ModelConfig",
    "NeuroMambaEmbedder",
    "NeuroSSM",
    "NeuroSSMConfig",
    "OptimConfig",
    "PretrainConfig",
    "PretrainModule",
    "RegionModel",
    "RunData",
    "UserInputError",
    "__version__",
    "build_head",
    "build_model",
    "load",
    "load_model_config",
    "read_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value  # next time Python finds it by itself
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
