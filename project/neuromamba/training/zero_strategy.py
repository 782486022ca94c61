"""DeepSpeed's ZeRO under Lightning: on CPUs and XPUs as well, with exact gradient accumulation.

Lightning's strategy runs on CUDA only, and divides an accumulated loss twice (DeepSpeed divides it
again). Which batch ends a step is decided here, by Lightning's rule, so that every strategy takes
the same steps; DeepSpeed by itself would carry what is left of an epoch over into the next one.
"""

from __future__ import annotations

import enum
import importlib
import math
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from neuromamba.checkpoints.io import names_in_module, read_checkpoint, read_training_state
from neuromamba.common.atomic_files import temporary_beside
from neuromamba.training.checkpoint_writer import put_in_place, shards_to_disk, written


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO stage 1, 2 or 3.

    Args:
        autocast: compute in bf16 under torch's autocast and keep the parameters in fp32, in place
            of DeepSpeed's bf16, which casts the parameters too. Needs precision "32-true".
        kwargs: of Lightning's strategy.
    """

    def __init__(self, autocast: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._autocast = autocast

    def setup_environment(self) -> None:
        """Choose the devices, and tell DeepSpeed their kind before it is used."""
        kind = self._kind()
        if kind == "cpu":
            assert self.parallel_devices is not None
            self.parallel_devices = [torch.device("cpu", i) for i in range(self.num_processes)]
        prepare_deepspeed(kind)
        DDPStrategy.setup_environment(self)

    def _kind(self) -> str:
        assert self.parallel_devices
        return self.parallel_devices[0].type

    def _format_batch_size_and_grad_accum_config(self) -> None:
        """Lightning would make the training loader to ask for its batch size."""
        assert isinstance(self.config, dict)
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)  # for DeepSpeed's log lines
        super()._format_batch_size_and_grad_accum_config()
        # Offloaded, the optimiser stays the one that was asked for, on the CPU.
        self.config["zero_force_ds_cpu_optimizer"] = False
        if self._autocast:
            self.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Lightning counts the batches of a step, and ends one with the epoch."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """DeepSpeed is told in ``backward``; its ``no_sync`` does not know ZeRO-2 and 3."""
        yield

    def backward(
        self,
        closure_loss: Tensor,
        optimizer: Optimizer | None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Back-propagate; the loss was divided by the batches of a step already."""
        engine, module = self.deepspeed_engine, self.lightning_module
        assert isinstance(module, LightningModule)
        ends_step = not module.trainer.fit_loop._should_accumulate()
        engine.set_gradient_accumulation_boundary(ends_step)
        loss = super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)
        if not ends_step:
            engine.step()  # counts the batch; Lightning calls it for those that end a step
        return loss

    @property
    def stage(self) -> int:
        """Stage of ZeRO."""
        assert isinstance(self.config, dict)
        stage: int = self.config["zero_optimization"]["stage"]
        return stage

    @property
    def refused_step(self) -> bool:
        """Whether DeepSpeed has left out the last step because its gradient was not finite.

        With fp16 it does so now and then, to find the scale of the loss.
        """
        engine = self.deepspeed_engine
        return bool(engine.optimizer.overflow) and not engine.fp16_enabled()

    def refuse_step(self) -> None:
        """Have DeepSpeed leave out the coming step, on every rank, in the way it does by itself."""
        optimizer = self.deepspeed_engine.optimizer
        changes: dict[str, Any]
        if self.stage == 3:
            changes = {"_get_norm_groups": lambda: [torch.tensor(math.inf)]}
        else:
            overflow = partial(setattr, optimizer, "overflow", True)
            changes = {"check_grad_overflow": True, "check_overflow": lambda **_: overflow()}

        def step(*args: Any, **kwargs: Any) -> None:
            del optimizer.step  # from here on the class's again
            before = {name: vars(optimizer).get(name) for name in changes}
            vars(optimizer).update(changes)
            try:
                optimizer.step(*args, **kwargs)
            finally:
                for name, value in before.items():
                    delattr(optimizer, name) if value is None else setattr(optimizer, name, value)
            assert optimizer.overflow, "this DeepSpeed has taken a step that it should leave out"

        optimizer.step = step

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a folder, of which every rank has a share, or leave the one that is there."""
        target = Path(self.broadcast(str(filepath)))
        temporary = Path(self.broadcast(str(temporary_beside(target))))
        with written(temporary, target):
            super().save_checkpoint(checkpoint, temporary, storage_options)
            shards_to_disk(temporary, self.global_rank)
            self.barrier()
            if self.is_global_zero:
                put_in_place(temporary, target)
            self.barrier()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; for an evaluation in stage 3 the first rank reads, for all.

        There DeepSpeed's engine has no optimiser, and without one it cannot load what it saved.
        """
        assert self.lightning_module is not None
        fitting = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        if fitting or not self.zero_stage_3:
            return super().load_checkpoint(checkpoint_path, weights_only)
        contents, weights = {}, {}
        if self.is_global_zero:
            contents = read_training_state(checkpoint_path, "best checkpoint").contents
            weights = read_checkpoint(
                checkpoint_path, "best checkpoint", as_trained=True
            ).state_dict
            del contents["module"]
        contents = self.broadcast(contents)
        return contents | {"state_dict": names_in_module(weights)}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Spread the first rank's weights over the others, where DeepSpeed has not loaded them."""
        if "state_dict" not in checkpoint:
            return
        import deepspeed

        module = self.lightning_module
        assert module is not None
        # All at once: the largest model has 12 million. Buffers do not change in training.
        with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=0):
            if self.is_global_zero:
                module.load_state_dict(checkpoint["state_dict"])


def _enum_member(kind: Any, name: str) -> enum.Enum:
    """A member of an enumeration, which Python 3.11.0 to 3.11.3 stores as a call of getattr.

    Admitted in its place: getattr itself would reach anything.
    """
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise pickle.UnpicklingError(f"getattr of {kind!r}, expected an enumeration")
    return kind[name]


_enum_member.__module__, _enum_member.__qualname__ = "builtins", "getattr"  # the name looked up


def import_muon() -> None:
    """Import DeepSpeed's Muon, which it does for every optimiser, without compiling its functions.

    To compile them, torch loads its whole compiler: more than a second in every process. By torch's
    own switch the three functions stay as they are written; no optimiser of ours calls them.
    """
    switch = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        with suppress(ImportError):  # not in every release
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def prepare_deepspeed(kind: str) -> None:
    """Import DeepSpeed for a kind of device: "cpu", "cuda" or "xpu"."""
    os.environ.setdefault("DS_ACCELERATOR", kind)
    import deepspeed.comm.torch  # noqa: F401  (makes the entry that is looked up below)
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    import_muon()
    if kind == "cpu":
        # Its shared-memory collectives take a minute to compile; torch's serve as well. The module
        # is looked up by name because the package has torch itself as its attribute `torch`.
        collectives: Any = sys.modules["deepspeed.comm.torch"]
        collectives.build_shm_op = lambda: None
    # What its checkpoints hold besides tensors and containers; nothing else is unpickled.
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address, _enum_member]
    )
    # Told at every step, of calls that are DeepSpeed's.
    warnings.filterwarnings(
        "ignore", ".*is deprecated. Please use `torch.distributed", FutureWarning
    )
