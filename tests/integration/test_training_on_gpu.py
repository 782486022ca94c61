"""The command line on a CUDA GPU: the same losses as on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny import CommandLine


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.timeout(280)  # Triton compiles and tunes
def test_pretraining_on_a_gpu(cli: CommandLine) -> None:
    flags = "--pretraining --use_autoregressive --max_epochs 2 --accelerator"
    on_cpu = cli.run(f"{flags} cpu --precision 32-true").metrics["val/loss"]
    on_gpu = cli.run(f"{flags} gpu --precision 32-true").metrics["val/loss"]
    mixed = cli.run(f"{flags} gpu --precision bf16-mixed").metrics["val/loss"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)
    assert mixed == pytest.approx(on_cpu, rel=3e-2)
