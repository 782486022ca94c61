"""
What a frozen backbone knows, with few labels
=============================================

Whether pre-training has learned anything useful is shown by simple models on its frozen features,
beside those of an untrained backbone and of the raw signal, on the same subjects.
"""

# %%
# Pre-train without labels
# ------------------------
# Two epochs take seconds and are too few to learn dynamics, as the last line says.

import json

import matplotlib.pyplot as plt

from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine()
neuromamba(
    "train --pretraining --use_autoregressive --dataset_name Dummy --dummy_subjects 32 "
    "--img_size 24 30 24 8 --embed_dim 48 --depth 2 --input_scaling_method voxelnorm_zeroback "
    "--train_split 0.5 --val_split 0.15 --batch_size 4 --learning_rate 3e-3 --max_epochs 2 "
    "--accelerator cpu --output_dir pretrain"
)

# %%
# Probe its features
# ------------------
# Linear and nearest-neighbour models are fitted on the training subjects and tested on the test
# subjects; ``--labels`` repeats this with few labelled subjects of each class, drawn several
# times.

neuromamba(
    "probe pretrain --downstream_task sex --blocks 0 --pools mean_sd --labels 2 4 "
    "--draws 4 --json probe.json --accelerator cpu"
)

# %%
# The curve over labelled subjects
# --------------------------------
# The classes of these synthetic subjects differ in their dynamics only: the mean image and the
# correlations know nothing of them, the standard deviation over time of each voxel does. With so
# few test subjects a value can lie far from chance by accident, also below it: the page has the
# intervals.

rows = json.loads((neuromamba.folder / "probe.json").read_text())
curves: dict[str, dict[int, float]] = {}
for row in rows:
    if row["probe"] == "linear" and row["subjects_a_class"] and row["value"] is not None:
        name = f"{row['model']}: {row['pool']}"
        curves.setdefault(name, {})[row["subjects_a_class"]] = row["value"]
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, curve in curves.items():
    axes.plot(list(curve), list(curve.values()), "-o", label=name)
axes.axhline(0.5, color="0.7", lw=1)
axes.set(xlabel="labelled subjects of each class", ylabel="test AUROC", xticks=[2, 4])
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
plt.show()

# %%
# The page of the probes:

neuromamba.page("pretrain/probe.html")
