"""
Explain it: a map beside that of random weights
===============================================

Which voxels does the score of the predicted class depend on? Beside every map stands the same map
of a network with random weights: where they resemble each other, the map shows the input and not
what was learned.
"""

# %%
# A trained model and a scan

import matplotlib.pyplot as plt
import numpy as np

import neuromamba as nm
from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine(lines=6)
neuromamba(
    "train --downstream_task sex --dataset_name Dummy --dummy_subjects 24 --img_size 24 30 24 8 "
    "--embed_dim 48 --depth 2 --input_scaling_method voxelnorm_zeroback --pool mean_sd "
    "--head_norm batch --batch_size 4 --learning_rate 3e-3 --max_epochs 2 --accelerator cpu "
    "--output_dir model"
)
neuromamba("synthetic --output new --subjects 2 --frames 40 --grid 24 30 24 --seed 5")

# %%
# The map
# -------
# ``ig`` (integrated gradients) adds up to the score minus the score of the baseline;
# ``occlusion`` takes one patch away at a time. ``gradxinput`` takes one step.

model = nm.load(neuromamba.folder / "model")
scan = model.prepare(neuromamba.folder / "new/sub-0002_task-rest_bold.nii.gz")
explanation = model.explain(scan, method="ig", steps=8)
print(explanation)
for name, value in explanation.record().items():
    if isinstance(value, (int, float, str)):
        print(f"{name}: {value}")

# %%
# Both maps are in the scan's own space: same shape, same affine.

maps = {"trained": explanation.image, "random weights": explanation.randomised}
figure, axes = plt.subplots(2, 5, figsize=(9, 4.2), layout="constrained")
for row, (title, image) in zip(axes, maps.items(), strict=True):
    values = np.asanyarray(image.dataobj)
    limit = np.quantile(np.abs(values[values != 0]), 0.99)
    for panel, z in zip(row, np.linspace(7, 17, 5).astype(int), strict=True):
        picture = panel.imshow(
            values[:, :, z].T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower"
        )
        panel.set(xticks=[], yticks=[], title=f"z = {z}" if row is axes[0] else "")
    row[0].set_ylabel(title)
figure.colorbar(picture, ax=axes, ticks=[-limit, 0, limit], format="%.1e", shrink=0.6)
plt.show()

# %%
# The same from the command line, for many scans, with a page and NIfTI files:

neuromamba("explain model new -o maps --method gradxinput")
neuromamba.page("maps/report.html")
