"""DeepSpeed's ZeRO under Lightning: on CPUs and XPUs as well, with exact gradient accumulation.

Lightning's strategy runs on CUDA only, and divides an accumulated loss twice (DeepSpeed divides it
again). Which batch ends a step is decided here, by Lightning's rule, so that every strategy takes
the same steps; DeepSpeed by itself would carry what is left of an epoch over into the next one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from project.module.models.checkpoint_io import (
    names_in_module,
    read_checkpoint,
    read_training_state,
)


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
            weights = read_checkpoint(checkpoint_path, "best checkpoint").state_dict
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


def prepare_deepspeed(kind: str) -> None:
    """Import DeepSpeed for a kind of device: "cpu", "cuda" or "xpu"."""
    os.environ.setdefault("DS_ACCELERATOR", kind)
    import deepspeed.comm.torch  # noqa: F401  (makes the entry that is looked up below)
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    if kind == "cpu":
        # Its shared-memory collectives take a minute to compile; torch's serve as well. The module
        # is looked up by name because the package has torch itself as its attribute `torch`.
        collectives: Any = sys.modules["deepspeed.comm.torch"]
        collectives.build_shm_op = lambda: None
    # What its checkpoints hold besides tensors and containers; nothing else is unpickled.
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    )
    # Told at every step, of calls that are DeepSpeed's.
    warnings.filterwarnings(
        "ignore", ".*is deprecated. Please use `torch.distributed", FutureWarning
    )
