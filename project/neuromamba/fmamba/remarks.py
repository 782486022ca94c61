"""What a user should know about flags that are valid, but perhaps not what was meant."""

from __future__ import annotations

from neuromamba.fmamba.run_config import RunConfig


def remarks(config: RunConfig) -> list[str]:
    """Sentences about the flags of a run, for its first lines."""
    found = []
    given = config.given
    if config.pretrain is not None and "downstream_task" in given:
        found.append(
            "--downstream_task: has no effect with --pretraining, which needs no labels. Leave it "
            "out; --watch_task TASK watches how well the features predict a task."
        )
    downstream, flags = config.downstream, config.flags
    frozen = downstream is not None and downstream.freeze_feature_extractor
    if frozen and not flags["load_model_path"] and not flags["test_only"]:
        found.append(
            "--freeze_feature_extractor: the head is trained on a backbone of random weights, "
            "which are never trained. Give --load_model_path FILE, unless this is a control."
        )
    return found
