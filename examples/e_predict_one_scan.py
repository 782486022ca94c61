"""
Predict one scan
================

A run folder and a scan are enough. ``check`` says whether the scan fits the model, ``predict``
answers with a page that says how far to trust the answer, and in Python the model is loaded once
for many scans.
"""

# %%
# A trained model, and a scan that it has not seen

import matplotlib.pyplot as plt

import neuromamba as nm
from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine()
neuromamba(
    "train --downstream_task sex --dataset_name Dummy --dummy_subjects 24 --img_size 24 30 24 8 "
    "--embed_dim 48 --depth 2 --input_scaling_method voxelnorm_zeroback --pool mean_sd "
    "--head_norm batch --batch_size 4 --learning_rate 3e-3 --max_epochs 2 --accelerator cpu "
    "--output_dir model"
)
neuromamba("synthetic --output new --subjects 2 --frames 40 --grid 24 30 24 --seed 5")
scan = "new/sub-0002_task-rest_bold.nii.gz"

# %%
# Does the scan fit?
# ------------------
# Values a little outside the range of the training are no doubt yet: with few runs to compare with,
# the range is widened.

neuromamba(f"check model {scan}")

# %%
# Predict
# -------
# The same in Python: ``prepare`` brings the scan to what the model was trained on and lists what
# it did, and every doubt.

model = nm.load(neuromamba.folder / "model")
prepared = model.prepare(neuromamba.folder / scan)
for action in prepared.actions:
    print("done:", action)
for problem in prepared.problems:
    print("doubt:", problem)
prediction = model.predict(prepared)
print(prediction)

# %%
# All windows of the scan are predicted and averaged. Their spread says how steady the prediction
# is over the scan, not how right it is.

names = list(prediction.probabilities)
at = names.index(str(prediction.value))
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
axes.plot(prediction.starts * prepared.header.tr, prediction.windows[:, at], "-o", label="windows")
axes.axhline(prediction.probabilities[names[at]], color="C1", label="scan")
axes.set(xlabel="start of the window, s", ylabel=f"probability of {names[at]}", ylim=(0, 1))
axes.legend()
plt.show()

# %%
# The page
# --------

neuromamba(f"predict model {scan} -o prediction")
neuromamba.page("prediction/report.html")
