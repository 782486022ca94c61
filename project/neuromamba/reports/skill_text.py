"""The skills of a pre-training in words, the same on every page."""

from __future__ import annotations

import math
from collections.abc import Mapping

# Headings of val/dynamic_skill, val/skill, val/sequence_skill and val/anatomy_share.
SKILLS = ("dynamic skill", "skill", "sequence skill", "anatomy share")


def skill_text(metrics: Mapping[str, float]) -> str:
    """Return sentences about the skills that a run has; NaN and absent ones are "not defined"."""

    def shown(name: str) -> str:
        value = metrics.get(f"val/{name}", math.nan)
        return "not defined" if math.isnan(value) else f"{value:.3f}"

    return (
        f"Dynamic skill {shown('dynamic_skill')} and skill {shown('skill')}: 1 - error / error of "
        f"the better of repeating the token before and the voxel's mean over the window, for "
        f"tokens within a place, without and with the level of each voxel. Sequence skill "
        f"{shown('sequence_skill')}: 1 - loss / loss of repeating the previous token of the "
        f"sequence, which mostly rewards the prediction of anatomy. Anatomy share "
        f"{shown('anatomy_share')} of the variance of the tokens."
    )
