"""
NeuroSSM from a table of series, with attribution
=================================================

NeuroSSM classifies time series of brain regions. This example starts from one table, trains, and
asks which regions and which pathway a decision depends on.
"""

# %%
# A table of series
# -----------------
# One row per frame: the person, the class, and a column for each region. Twelve regions of 80
# people; in patients two regions oscillate slowly, each with a phase of its own, so that
# correlations between regions say little about the class.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import neuromamba as nm
from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine()
rng = np.random.default_rng(0)
regions = [f"region_{number:02d}" for number in range(12)]
frames = np.arange(80)
tables = []
for person in range(80):
    patient = person % 2
    series = rng.normal(size=(len(frames), len(regions)))
    for region in (3, 8):
        phase = rng.uniform(0, 2 * np.pi)
        series[:, region] += 1.5 * patient * np.sin(2 * np.pi * frames / 20 + phase)
    table = pd.DataFrame(series, columns=regions)
    table.insert(0, "diagnosis", "patient" if patient else "control")
    table.insert(0, "subject", f"sub-{person:02d}")
    tables.append(table)
pd.concat(tables).to_csv(neuromamba.folder / "series.csv", index=False)

# %%
# Train and test
# --------------
# A holdout is scored once, at the end, beside linear models on the same split.

neuromamba(
    "regions train --dataset Own --data_file series.csv --target diagnosis --dynamic_length 64 "
    "--embed_dim 32 --depth 1 --epochs 12 --batch_size 8 --learning_rate 2e-3 "
    "--max_learning_rate 4e-3 --skip_cross_validation --seeds 0 --baselines FC "
    "--results_dir results --device cpu"
)

# %%
# Explain one person
# ------------------

model = nm.load(neuromamba.folder / "results/Own/NeuroSSM")
series = tables[1][regions].to_numpy().T  # [regions, frames]
scan = model.prepare(series, tr=2.0)
print("predicted:", model.predict(scan))
explanation = model.explain(scan)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
place = np.arange(len(regions))
left.bar(place - 0.2, explanation.values, 0.4, label="trained")
left.bar(place + 0.2, explanation.randomised_values, 0.4, label="random weights", color="0.7")
left.set(xlabel="region", ylabel="part of the score", xticks=place)
left.legend()
picture = right.imshow(explanation.pathway_values, cmap="RdBu_r", aspect="auto")
right.set(xlabel="region", xticks=place, yticks=range(len(explanation.pathways)))
right.set_yticklabels(explanation.pathways)
picture.set_clim(
    -np.abs(explanation.pathway_values).max(), np.abs(explanation.pathway_values).max()
)
figure.colorbar(picture, ax=right, label="part of the score")
plt.show()
