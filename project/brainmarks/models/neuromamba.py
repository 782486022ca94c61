"""FMamba in the evaluation suite Brainmarks: ``neuromamba`` in its registry of models.

Installed with ``pip install '.[brainmarks]'``; ``brainmarks`` is a namespace package, so
this file lies beside the suite's own. The suite was not at hand when this was written: its names
``brainmarks.models.registry.register_model`` and ``brainmarks.models.base.Embeddings`` follow its
description, and the tests use a stand-in of that interface.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model

from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.open_model import load
from neuromamba.inference.suite_model import (
    CELLS,
    WINDOWS,
    SuiteTransform,
    SuiteWrapper,
    find_mask,
    voxels_on_grid,
)


class NeuroMambaWrapper(SuiteWrapper):
    """The suite's interface: ``forward(batch) -> Embeddings(cls, reg, patch)``."""

    def forward(self, batch: dict[str, Any]) -> Embeddings:
        """Embed a batch; there are no register tokens."""
        mean, patches = self.embed(batch)
        return Embeddings(mean, None, patches)


@register_model
def neuromamba(
    ckpt_path: str | Path | None = None,
    coord_normalize: bool = False,
    *,
    windows: int = WINDOWS,
    cells: int = CELLS,
    mask_path: str | Path | None = None,
) -> tuple[SuiteTransform, NeuroMambaWrapper]:
    """Return the transform and the model.

    Args:
        ckpt_path: run folder, checkpoint or exported folder.
        coord_normalize: feed the suite's z-scored voxels in place of the model's own scaling.
        windows: of a scan, at most.
        cells: along each axis of the coarse grid that patch embeddings are pooled to; 0 gives the
            features of all tokens.
        mask_path: of the MNI152NLin6Asym 2 mm mask, see ``find_mask``.

    Raises:
        UserInputError: no checkpoint, or one that does not fit the suite's voxels.
    """
    if ckpt_path is None:
        raise UserInputError("ckpt_path: not given; name a run folder, checkpoint or export.")
    model = load(ckpt_path, "cpu")
    if not isinstance(model, LoadedModel):
        raise UserInputError(f"ckpt_path: '{ckpt_path}' is a model of regions, not of volumes.")
    voxels, vox = voxels_on_grid(find_mask(mask_path), model.contract)
    transform = SuiteTransform(model.contract, voxels, windows, coord_normalize)
    return transform, NeuroMambaWrapper(model, vox, cells)
