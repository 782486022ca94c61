"""Memory of each rank of a run: what it holds from step to step, and the most of a step.

On a CPU the tensors of a step, what the loader reads into and the process itself share one memory;
there the prediction is that of ``--allocator compact``, which gives freed memory back. glibc's
other ways leave holes that small blocks keep apart, of a size that depends on the order of
thousands of small requests: ``benchmarks/results/memory_plan.md`` has what was measured.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.stores import check_cohorts_have_target
from neuromamba.fmamba.weight_counts import Weights, count_weights
from neuromamba.layers import bf16
from neuromamba.layers.ssd import native
from neuromamba.planning.state_memory import state_memory
from neuromamba.planning.step_memory import GROUPS, Step, step_memory
from neuromamba.training.hardware_flags import ZERO_STAGES, installed
from neuromamba.training.peak_memory import resident_now

# What Lightning and the modules that train add to a process that plans; a test measures it.
TRAINING_MODULES = 118_000_000
_TRUE = {"32-true": 4, "64-true": 8, "bf16-true": 2}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Device, strategy and precision of a run.

    Attributes:
        accelerator: "cpu", "cuda" or "xpu".
        strategy, precision: as for the Trainer.
        ranks: processes of the run.
        autocast: ``--deepspeed_autocast``.
    """

    accelerator: str
    strategy: str
    precision: str
    ranks: int
    autocast: bool = False

    @property
    def numbers(self) -> tuple[int, int]:
        """Bytes of a parameter in the model, and of what enters matrix products.

        A plan for a CPU is one for this machine's.
        """
        if self.precision in _TRUE:
            return _TRUE[self.precision], _TRUE[self.precision]
        casts = self.strategy in ZERO_STAGES or self.strategy == "fsdp"
        slow = self.accelerator == "cpu" and self.precision.startswith("bf16")
        operand = 4 if slow and not bf16.judge().pays else 2
        return (2 if casts and not self.autocast else 4), operand

    @property
    def hooked(self) -> bool:
        """ZeRO-3 gathers the weights of each layer in hooks."""
        return ZERO_STAGES.get(self.strategy, {}).get("stage") == 3


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a rank, by name.

    Attributes:
        device: on the GPU, or of the process where the run is on a CPU.
        host: beside it; empty on a CPU.
        moment: when the device holds most.
    """

    device: dict[str, int]
    host: dict[str, int]
    moment: str

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())


def plan_memory(
    config: RunConfig,
    setting: Setting,
    weights: Weights,
    tokens: int,
    voxels: int,
    batch_size: int | None = None,
) -> MemoryPlan:
    """Predict the peak of each rank.

    Args:
        config: the run.
        setting: where and how.
        weights: of the model.
        tokens, voxels: kept tokens and brain voxels of the largest window.
        batch_size: windows of a batch, instead of the run's.

    Raises:
        UserInputError: a scan that keeps every step, or one that does not run on such a device.
    """
    batch = batch_size or config.data.batch_size
    on_cpu = setting.accelerator == "cpu"
    parameter, operand = setting.numbers
    masked = None
    if config.pretrain is not None:
        masked = config.pretrain.predicted_share(config.model.token_grid[3])
    step = Step(
        model=config.model,
        lengths=(tokens,) * batch,
        voxels=(voxels,) * batch,
        backend=_backend(config.flags["ssd_backend"], setting.accelerator),
        device=setting.accelerator,
        parameter=parameter,
        operand=operand,
        checkpointing=config.flags["activation_checkpointing"],
        hooked=setting.hooked,
        native=on_cpu and native.status()[0] is not None,
        fused=installed("causal-conv1d"),
        masked=masked,
        head=config.head,
        frozen=config.downstream is not None and config.downstream.freeze_feature_extractor,
        augmented=config.augment is not None,
    )
    state = state_memory(
        weights, setting.strategy, setting.ranks, parameter, config.optim.optimizer, on_cpu
    )
    peak = step_memory(step)
    groups = {name: peak.groups[name] for name in GROUPS if peak.groups.get(name)}
    host = _loader(config, voxels, batch) | state.host
    if on_cpu:
        return MemoryPlan(
            {"the process itself": _process_itself(), **state.device, **host, **groups},
            {},
            peak.moment,
        )
    return MemoryPlan(
        {**state.device, **groups}, {"the process itself": _process_itself(), **host}, peak.moment
    )


def _backend(name: str, accelerator: str) -> str:
    """Resolve ``--ssd_backend`` for a device that need not be in this machine."""
    if name == "auto":
        return "triton" if accelerator == "cuda" else "cpu"
    if name == "reference":
        raise UserInputError(
            "--ssd_backend: reference keeps the state of every token, which is not planned for; "
            "use auto, cpu or triton."
        )
    if name == "triton" and accelerator != "cuda":
        raise UserInputError(
            f"--ssd_backend: triton needs a CUDA GPU, and the plan is for {accelerator}; use auto."
        )
    return name


def _process_itself() -> int:
    """Bytes of a training process before it has any tensors: of this one, and what it lacks."""
    return resident_now() + (0 if "pytorch_lightning" in sys.modules else TRAINING_MODULES)


def _loader(config: RunConfig, voxels: int, batch: int) -> dict[str, int]:
    """Batches on their way, and the tables that say where their voxels go (``tokenizer``)."""
    data, model = config.data, config.model
    window = voxels * (2 * (model.img_size[3] + model.anatomy) + 4)
    ahead = data.num_workers * data.prefetch_factor if data.num_workers else 0
    held = {
        "batches of the loader": (1 + ahead) * batch * window,
        "tables of voxels": 2 * 8 * math.prod(model.img_size[:3]),
    }
    if isinstance(data.window_cache, float) and data.window_cache:
        held["window cache"] = round(data.window_cache * 1e9)
    return held


def model_weights(config: RunConfig) -> Weights:
    """Parameters and buffers of the run's model."""
    check_cohorts_have_target(config)
    return count_weights(config)
