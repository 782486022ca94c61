"""What to say of a pre-training that has not learned how the signal changes over time."""

from __future__ import annotations

from neuromamba.common.errors import see
from neuromamba.config.names import RUN_SCALINGS

METADATA_KEY = "dynamic_skill"  # in the metadata of a pre-training's checkpoint; None: unknown
_DOCUMENT = "docs/pretraining.md"


def remedy(scaling: str) -> str:
    """What to do about a pre-training that does not learn dynamics, given its scaling."""
    if scaling in RUN_SCALINGS:
        return "to learn dynamics, pre-train with --input_scaling_method voxelnorm_zeroback"
    return "train for more steps, on more subjects, or with a larger --embed_dim"


def missing_dynamics(skill: float | None, scaling: str) -> str | None:
    """Return one sentence about a dynamic skill below 0, with a remedy; None where there is none.

    Args:
        skill: ``val/dynamic_skill``; None or NaN where it is not known or not defined.
        scaling: ``--input_scaling_method`` of the pre-training.
    """
    if skill is None or not skill < 0:
        return None
    return (
        f"the pre-training has not learned how the signal changes over time: its dynamic skill on "
        f"the validation subjects is {skill:.2f}, and below 0 each voxel's mean or the token "
        f"before is the better prediction; {remedy(scaling)} ({_DOCUMENT}). {see('dynamic-skill')}"
    )
