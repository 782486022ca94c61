"""
From NIfTI files to a store, and its quality page
=================================================

Training reads a store: one HDF5 file per run with the brain voxels only. This example converts a
folder of NIfTI files, checks the store, and finds two runs that should not be in it.
"""

# %%
# A folder of scans
# -----------------
# Synthetic subjects take the place of yours. Two of them are spoiled on purpose: one is shifted
# against the others, as after a failed registration; one moves in the middle of the run.

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd

from neuromamba.common.notebook import CommandLine
from neuromamba.data.store.reader import RunFile

neuromamba = CommandLine()  # in a temporary folder; CommandLine("my_folder") keeps the files
neuromamba("synthetic --output nifti --subjects 10 --frames 30 --grid 30 36 30")

for subject, first_frame in (("sub-0003", 0), ("sub-0006", 15)):
    path = neuromamba.folder / f"nifti/{subject}_task-rest_bold.nii.gz"
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[..., first_frame:] = np.roll(values[..., first_frame:], 3, axis=1)
    nib.save(nib.Nifti1Image(values, image.affine, image.header), path)

# %%
# Look at the plan, then convert
# ------------------------------
# ``--dry_run`` lists every run with its repetition time, space, mask and what will be cropped,
# and every run that would be refused. Nothing is written.

neuromamba(
    "preprocess --input nifti --output store --img_size 30 36 30 --dataset_name Dummy --dry_run"
)

# %%
# The same without ``--dry_run`` converts. A second call would skip what is up to date.

neuromamba("preprocess --input nifti --output store --img_size 30 36 30 --dataset_name Dummy")
neuromamba("check-store --image_path store")

# %%
# What a file of the store holds
# ------------------------------

path = sorted((neuromamba.folder / "store/hdf5").glob("*.h5"))[0]
run = RunFile(path)
header = run.header
print(header.subject, header.grid, header.n_frames, "frames,", header.tr, "s,", header.orientation)
print(f"{len(run.vox)} brain voxels of {np.prod(header.grid)}")

# %%
# The quality page
# ----------------
# It shows every run, outliers first. Both spoiled runs are flagged.

neuromamba("quality --image_path store")
numbers = pd.read_csv(neuromamba.folder / "store/quality/quality.tsv", sep="\t")
flagged = numbers.dropna(subset=["flags"])
print(flagged[["subject", "flags"]].to_string(index=False))

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
axes.scatter(numbers["dice"], numbers["jump"], color="0.5")
axes.scatter(flagged["dice"], flagged["jump"], color="C3")
for _, run in flagged.iterrows():
    axes.annotate(
        run["subject"], (run["dice"], run["jump"]), xytext=(6, -3), textcoords="offset points"
    )
axes.set(
    xlabel="overlap with the masks of the other runs", ylabel="largest jump, SD", xlim=(None, 1.02)
)
plt.show()

# %%
# The page itself, as a browser shows it:

neuromamba.page("store/quality/quality.html")
