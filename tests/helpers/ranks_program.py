"""Runs several command lines one after the other in the processes that torchrun starts.

    torchrun --nproc_per_node 2 tests.helpers.ranks_program.py JOBS.json

JOBS.json: a list of {"argv": [...], "weights": FILE, "masters": FILE, "layer_by_layer": bool}. The
weights at the end of the training are written to the first file (npz, gathered where ZeRO-3 spreads
them over the ranks), and to the second those that the optimiser keeps, in fp32, with buffers; both
are optional. With ``layer_by_layer`` no block is computed in one call, as under ZeRO-3, whose hooks
are on the layers. One set of processes for many runs, because starting them takes longer than a
run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from neuromamba.commands.train import run
from neuromamba.common.errors import UserInputError
from neuromamba.fmamba import trainer as trainer_module
from neuromamba.layers.mamba2 import ResidualBlock


class KeepWeights(Callback):
    """Writes the trained weights as they are in memory, without any checkpoint."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every rank takes part in the gathering, the first one writes."""
        parameters = dict(pl_module.named_parameters())
        if any(hasattr(p, "ds_id") for p in parameters.values()):
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(parameters.values())):
                self.write(trainer, parameters)
        else:
            self.write(trainer, parameters)

    def write(self, trainer: Trainer, parameters: dict[str, Any]) -> None:
        """As float64, by name."""
        if trainer.is_global_zero:
            kept = {name: p.detach().double().numpy() for name, p in parameters.items()}
            np.savez(self.path, **kept)


class KeepMasters(Callback):
    """Writes what a checkpoint should hold: fp32 weights, whatever the model computes in."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By DeepSpeed's own functions, in which every rank takes part."""
        parameters = dict(pl_module.named_parameters())
        trained = {name: p.detach() for name, p in parameters.items()}
        if any(hasattr(p, "ds_id") for p in parameters.values()):
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(parameters.values())):
                trained = {name: p.detach().clone() for name, p in parameters.items()}
        if any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in parameters.values()):
            from deepspeed.utils import safe_get_full_fp32_param

            for name, parameter in parameters.items():
                if parameter.requires_grad:
                    trained[name] = safe_get_full_fp32_param(parameter)
        kept = trained | dict(pl_module.named_buffers())
        if trainer.is_global_zero:
            shapes = {name: p.ds_shape for name, p in parameters.items() if hasattr(p, "ds_shape")}
            arrays = {
                name: tensor.float().reshape(shapes.get(name, tensor.shape)).numpy()
                for name, tensor in kept.items()
                if not name.startswith(("validation.", "test.", "losses."))
            }
            np.savez(self.path, **arrays)


def main() -> int:
    """Exit with 2 and the message at the first mistake, as the command line does."""
    torch.set_num_threads(1)
    build = trainer_module.build_callbacks
    may_be_fused = ResidualBlock._may_be_fused
    for job in json.loads(Path(sys.argv[1]).read_text()):
        extra: list[Callback] = [KeepWeights(job["weights"])] if job.get("weights") else []
        extra += [KeepMasters(job["masters"])] if job.get("masters") else []
        trainer_module.build_callbacks = lambda *args, extra=extra: [*build(*args), *extra]
        apart = bool(job.get("layer_by_layer"))
        ResidualBlock._may_be_fused = (  # type: ignore[method-assign]
            (lambda *_: False) if apart else may_be_fused
        )
        try:
            run(job["argv"])
        except UserInputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
