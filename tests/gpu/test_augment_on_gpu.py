"""Augmentation on a CUDA GPU gives what it gives on the CPU, and never waits for the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from neuromamba.common.seeds import stream
from neuromamba.config.data import AugmentConfig
from neuromamba.data.windows.augment import augment_window, bounding_box, plan_augmentation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
GRID = (48, 54, 48)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_cpu(no_waiting: None, precision: torch.dtype) -> None:
    axes = np.indices(GRID)
    inside = sum(((a - n / 2) / (0.4 * n)) ** 2 for a, n in zip(axes, GRID, strict=True)) < 1
    vox = torch.from_numpy(np.flatnonzero(inside).astype(np.int32))
    bold = torch.randint(5000, 20000, (20, vox.numel()), dtype=torch.int16)
    plan = plan_augmentation(vox, GRID, AugmentConfig(), stream(3))
    plan = plan._replace(sigma=0.7, box=bounding_box(plan.voxels, GRID))
    expected = augment_window(bold, plan, GRID)
    there = [part.to("cuda") if isinstance(part, torch.Tensor) else part for part in plan]
    q, moved = bold.to("cuda"), type(plan)(*there)  # type: ignore[arg-type]
    augment_window(q, moved, GRID)  # libraries are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        found = augment_window(q, moved, GRID)
    torch.cuda.set_sync_debug_mode("default")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=0.1)
