"""Parts of a fit that both model families share."""

from __future__ import annotations

import logging
import warnings

# Lightning's advice that does not apply here.
_NOISE = (
    ".*does not have many workers.*",  # 0 workers is our documented default
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",  # val_split 0 is allowed
    ".*Checkpoint directory .* exists and is not empty.*",  # resuming
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*could not find the monitored key.*",  # ended before the first validation
    ".*You are trying to `self.log\\(\\)` but `Trainer\\(barebones.*",
    ".*Total length of `list` across ranks is zero.*",  # no validation subjects
    ".*module\\(s\\) in eval mode at the start of training.*",  # a frozen backbone
    ".*You have overridden `on_before_batch_transfer` in `LightningModule`.*",  # as intended
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning 2.6 with torch 2.13
    ".*It is recommended to use `self.log\\('(val|test)/.*sync_dist=True.*",  # reduced already
    ".*requested to overfit but enabled val dataloader shuffling.*",  # it is in order
    ".*The `srun` command is available on your system but is not used.*",  # launch.py knows
    ".*Since DeepSpeed handles gradient clipping internally.*",  # ours does nothing then
    ".*When saving the DeepSpeed Stage 3 checkpoint.*",  # export_checkpoint.py makes one file
)


def quiet_lightning() -> None:
    """Leave out Lightning's advice that does not apply here, and its informal lines.

    These (devices found, files restored, tips) hide ours.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
