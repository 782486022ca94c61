"""Every name that a user can type: data sets, heads, encodings, backends ...

The command line checks names against these lists without importing a model; the registries that
implement the names (``DATASETS``, ``BACKBONES``, ``HEADS`` ...) assert at import that they agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from neuromamba.common.errors import look_up

MODEL_NAMES = ("fmamba", "swift")
DATASET_NAMES = (
    "S1200",
    "ABCD",
    "UKB",
    "HBN",
    "ABIDE",
    "ADHD200",
    "DevelopmentFMRI",
    "Own",
    "Dummy",
)
DATASET_ALIASES: Mapping[str, str] = {"HCP": "S1200"}
SPLIT_UNITS = ("subject", "session", "run")
CLASS_WEIGHTS = ("none", "balanced")
# One gain and one shift for all voxels of a run, and statistics of every voxel.
RUN_SCALINGS = ("znorm_minback", "znorm_zeroback", "minmax_zeroback", "minmax_minback")
VOXEL_SCALINGS = ("voxelnorm_zeroback", "demean_zeroback")
SCALING_METHODS = (*RUN_SCALINGS, *VOXEL_SCALINGS)
SCALING_STATISTICS = ("run", "window")  # what the statistics of VOXEL_SCALINGS are over
ROLLOUT_STATISTICS = ("prompt", "run")  # what those of a rollout are over
CHANNELS = ("anatomy", "dynamics")  # the mean image of a run, and the signal of each voxel
LABEL_SCALING_METHODS = ("standardization", "minmax")
POSITIONAL_ENCODINGS = ("none", "ff", "nerf", "cpe")
HEAD_NAMES = ("linear", "mamba")
HEAD_ALIASES: Mapping[str, str] = {"v1": "linear"}
POOL_NAMES = ("mean", "mean_sd", "regions", "attention")
PROBE_POOLS = ("mean", "mean_sd", "regions", "places")  # those without weights of their own
HEAD_NORMS = ("none", "batch")
LAST_LAYER = "features"  # of a backbone: the output of the last block after the final norm
EMBED_POOLS = ("subject", "window", "region", "token")  # what a row of embeddings stands for
EMBED_STATISTICS = ("mean", "sd", "lag1")  # over the tokens of a place, in time
EXPLAIN_METHODS = ("ig", "gradxinput", "occlusion")
PATHWAY_ABLATIONS = ("mean", "zero")  # what an ablated pathway of NeuroSSM is replaced by
EXPLAIN_RESOLUTIONS = ("patch", "voxel")  # of a map
SSD_BACKENDS = ("auto", "reference", "cpu", "triton")
ALLOCATORS = ("auto", "default", "retain", "compact")
MASKING_TYPES = ("random", "tube", "temporal")
OBJECTIVES = ("autoregressive", "mim")
PREDICTIONS = ("next_token", "same_place")  # which token the features of a token predict
LOSS_TARGETS = ("token", "difference")  # what the loss compares: the token, or its change
TOKEN_ORDERS = ("raster", "space_first")
OPTIMIZER_NAMES = ("AdamW", "SGD")
LOGGER_NAMES = ("wandb", "tensorboard", "csv")
ATLAS_NAMES = ("Schaefer400", "AAL3v2", "AAL116")
ROI_ORIENTATIONS = ("auto", "regions_by_time", "time_by_regions")  # of matrices of series
COLLECTION_FORMATS = ("pcp", "athena", "npz", "files", "list")  # of region series
CONSTANT_REGIONS = ("keep", "drop", "refuse")
CONFOUND_SETS = ("none", "basic", "full")  # columns of fMRIPrep that are regressed out
RANDOM_MAPS = ("moran", "permutation")  # null models of a map of regions
CONV_NAMES = ("conv1d", "conv_xBC")  # mamba_ssm from version 2 on, and before
EXPORT_DTYPES = ("fp32", "bf16")
ORIENTATION = "LAS"  # voxel order of every store: that of HCP/FSL and of the released weights
SAFETENSORS = ".safetensors"  # suffix of weights without code


def canonical_dataset_name(name: str) -> str:
    """Resolve ``--dataset_name``, aliases included (``HCP`` is ``S1200``)."""
    if name in DATASET_ALIASES:
        return DATASET_ALIASES[name]
    found = look_up(name, (*DATASET_NAMES, *DATASET_ALIASES), "--dataset_name")
    return DATASET_ALIASES.get(found, found)


def canonical_head_name(name: str) -> str:
    """Resolve ``--clf_head_version``; ``v1`` is the reference's other name of ``linear``."""
    found = look_up(name, (*HEAD_NAMES, *HEAD_ALIASES), "--clf_head_version")
    return HEAD_ALIASES.get(found, found)
