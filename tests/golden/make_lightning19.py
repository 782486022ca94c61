"""Makes the checkpoints of ``tests/golden/lightning19``: the reference's kind, by its own tools.

They were written by Lightning 1.9.5, which the reference pins, with DeepSpeed 0.12.6, by 2 or 3
processes on a CPU (torch 2.13, gloo), and hold the trained model in two ways: as these tools save
it, and in ``weights.npz`` as DeepSpeed gives it out in memory.

    pip install --no-deps --target OLD pytorch-lightning==1.9.5 lightning-utilities "setuptools<70"
    pip install --no-deps --no-build-isolation --target OLD deepspeed==0.12.6
    PYTHONPATH=OLD DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 python -m torch.distributed.run \\
        --nproc_per_node 2 -m tests.golden.make_lightning19 1 bf16 full FOLDER

DeepSpeed 0.12.6 is older than torch 2.13 and expects Intel's extension on a CPU. What it took, none
of it near what is saved: an empty package intel_extension_for_pytorch, a program numactl that
prints one node, "gloo" for "ccl" in accelerator/cpu_accelerator.py, and two imports that are gone
(``log`` in elasticity/elastic_agent.py, ``BUFSIZE`` in autotuning/scheduler.py).
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import pytorch_lightning.strategies.deepspeed as lightning_deepspeed
import torch
import torch.distributed

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.build import build_model

MODEL = ModelConfig(
    img_size=(4, 4, 4, 4), patch_size=(2, 2, 2, 2), embed_dim=8, depth=1, background="zero"
)


class Module(pl.LightningModule):
    """The backbone as the reference holds it, and a head in the frozen case."""

    def __init__(self, **flags: object) -> None:
        super().__init__()
        self.save_hyperparameters(flags)
        self.frozen = bool(flags["freeze_feature_extractor"])
        torch.manual_seed(0)
        self.model = build_model(MODEL, output_layer=not self.frozen)
        if self.frozen:
            self.model.requires_grad_(False)
            self.head = torch.nn.Linear(8, 2)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """A loss that moves every parameter; how well is no matter."""
        dtype = self.model.embedder.projection.dtype
        fmri = torch.randn(1, 1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(batch_idx))
        output = self.model(fmri.to(dtype))
        result = self.head(output.features) if self.frozen else output.prediction
        return (result.float() - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """On what is trainable."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Numbers; the data are made in the step."""
        return torch.utils.data.DataLoader(list(range(8)))


class OnCPU(lightning_deepspeed.DeepSpeedStrategy):
    """DeepSpeed wants a device with a number."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)


def main(stage: int, precision: str, kind: str, folder: Path) -> None:
    """Train, save, and write the weights in memory beside it."""
    lightning_deepspeed.CUDAAccelerator = pl.accelerators.CPUAccelerator
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_gather", "broadcast"):
        collective = getattr(torch.distributed, name)  # newer torch asks for no_grad here
        setattr(torch.distributed, name, torch.no_grad()(collective))
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    strategy = OnCPU(stage=stage, process_group_backend="gloo")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=strategy,
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    module = Module(freeze_feature_extractor=kind == "frozen", strategy=f"deepspeed_stage_{stage}")
    trainer.fit(module)
    trainer.save_checkpoint(folder)
    parameters = dict(module.named_parameters())
    whole = list(parameters.values())
    with deepspeed.zero.GatheredParameters(whole) if stage == 3 else nullcontext():
        weights = {name: p.detach().float().clone() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            weights[name] = safe_get_full_fp32_param(parameter).reshape(weights[name].shape)
    weights |= {name: buffer.float() for name, buffer in module.named_buffers()}
    if trainer.is_global_zero:
        (folder / "zero_to_fp32.py").unlink()
        np.savez(folder / "weights.npz", **{k: w.numpy() for k, w in weights.items()})


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
