"""
Pre-train, and watch whether dynamics are learned
=================================================

Pre-training without labels predicts the next token. A falling loss proves little: most of the
variance of a scan is its anatomy. This example trains a small model and draws the measures that
separate the two.
"""

# %%
# A pre-training
# --------------
# With ``--dataset_name Dummy`` and no ``--image_path`` a synthetic store is written first. The
# scaling ``voxelnorm_zeroback`` removes each voxel's mean and variance, so what is left to
# predict is dynamics.

import matplotlib.pyplot as plt
import pandas as pd

from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine()
neuromamba(
    "train --pretraining --use_autoregressive --dataset_name Dummy --dummy_subjects 16 "
    "--img_size 24 30 24 8 --embed_dim 48 --depth 2 --input_scaling_method voxelnorm_zeroback "
    "--batch_size 4 --learning_rate 3e-3 --max_epochs 4 --accelerator cpu --output_dir pretrain"
)

# %%
# The curves
# ----------
# ``logs/metrics.csv`` has a row per logged step. ``val/dynamic_skill`` is 0 where the model
# predicts the change of the signal no better than repeating the last frames or each voxel's mean,
# and 1 where it is exact. ``val/sequence_skill`` mostly measures anatomy. Here the first begins
# below 0 and just passes it: with so little training the model has only begun to learn dynamics,
# which the loss does not show.

log = pd.read_csv(neuromamba.folder / "pretrain/logs/metrics.csv")
skills = log[["epoch", "val/dynamic_skill", "val/sequence_skill", "val/loss"]].dropna()
skills = skills.drop_duplicates(subset=["val/loss"])  # the best weights are validated once more
print(skills.to_string(index=False))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
loss = log[["step", "train/loss"]].dropna()
left.plot(loss["step"], loss["train/loss"], color="0.4")
left.set(xlabel="step", ylabel="training loss")
for name, style in (("val/dynamic_skill", "-o"), ("val/sequence_skill", ":s")):
    right.plot(skills["epoch"], skills[name], style, label=name)
right.axhline(0, color="0.7", lw=1)
right.set(xlabel="epoch", ylabel="skill on validation subjects", xticks=skills["epoch"])
right.legend()
plt.show()

# %%
# What the run wrote
# ------------------
# ``metrics.json`` holds the last values, ``config.yaml`` every flag, ``checkpoints/best.ckpt``
# the weights that the validation loss chose. A run that ends with a dynamic skill below 0 says so
# in its output.

for path in sorted((neuromamba.folder / "pretrain").iterdir()):
    print(path.name)
