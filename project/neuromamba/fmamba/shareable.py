"""What of a checkpoint's metadata may travel to other people.

The metadata of a run name folders of the machine, and hold keys of the people it was trained on:
hashes without a secret, so that anyone who can list candidate names can find out who took part.
Exported files hold neither, unless they are asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

# Of the "data": keys of the people, split units and images of the training.
TRAINING_KEYS = ("training_subjects", "training_units", "training_contents")
_FILES_OF_LABELS = ("label_csv", "events")


def shareable_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return checkpoint metadata without paths and without keys of training subjects.

    Folders of stores become empty and the list of excluded subjects is left out; of the user's own
    tables the names of the files stay, without their folders, since whether there is one is part of
    the task.

    Args:
        metadata: of a checkpoint, in plain containers; unchanged.
    """
    found = dict(metadata)
    if "data" in found:
        data = {name: part for name, part in found["data"].items() if name not in TRAINING_KEYS}
        config = dict(data.get("config", {}))
        if "image_path" in config:
            config["image_path"] = ["" for _ in config["image_path"]]
        if "bad_subj_path" in config:
            config["bad_subj_path"] = None
        found["data"] = data | {"config": config} if "config" in data else data
    if "downstream" in found:
        task = dict(found["downstream"])
        for name in _FILES_OF_LABELS:
            if task.get(name):
                task[name] = PurePath(task[name]).name
        found["downstream"] = task
    return found


def shareable_origin(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an exported file says of its origin without paths, those of its source too."""
    found = {name: part for name, part in origin.items() if name != "source"}
    if isinstance(found.get("source_export"), Mapping):
        found["source_export"] = shareable_origin(found["source_export"])
    return found
