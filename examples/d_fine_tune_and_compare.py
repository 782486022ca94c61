"""
Fine-tune, report, compare
==========================

A pre-trained model and one from scratch learn the same task on the same split. The report sets
both beside linear baselines, with intervals over subjects and paired differences.
"""

# %%
# Pre-train, fine-tune, and train from scratch
# --------------------------------------------
# The second and the third command differ in ``--load_model_path`` alone. All are short: the
# pre-training says itself that it has not learned dynamics.

import json

import matplotlib.pyplot as plt

from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine(lines=6)
data = (
    "--dataset_name Dummy --dummy_subjects 32 --img_size 24 30 24 8 --embed_dim 48 --depth 2 "
    "--input_scaling_method voxelnorm_zeroback --train_split 0.4 --val_split 0.2 --batch_size 4 "
    "--learning_rate 3e-3 --accelerator cpu"
)
task = "--downstream_task sex --pool mean_sd --head_norm batch --max_epochs 2"
neuromamba(f"train --pretraining --use_autoregressive {data} --max_epochs 2 --output_dir pretrain")
neuromamba(
    f"train {task} {data} --load_model_path pretrain/checkpoints/best.ckpt --output_dir fine_tuned"
)
neuromamba(f"train {task} {data} --output_dir from_scratch")

# %%
# Metrics with intervals
# ----------------------
# Metrics are computed over subjects: the probabilities of a subject's windows are averaged first.
# Where the subjects are too few for an interval, it is not defined, and none is drawn. A high AUROC
# beside an accuracy near chance says that the order of the probabilities is right and 0.5 is the
# wrong threshold, here after two epochs; ``--adjust_thresh`` chooses it on the validation subjects.

figure, axes = plt.subplots(figsize=(6, 2.2), layout="constrained")
for row, name in enumerate(("from_scratch", "fine_tuned")):
    metrics = json.loads((neuromamba.folder / name / "metrics.json").read_text())
    value, low, high = (metrics[f"test/auroc{end}"] for end in ("", "_low", "_high"))
    print(f"{name}: AUROC {value}, 95 % interval {low} to {high}")
    axes.plot(value, row, "o", color="C0")
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color="C0")
axes.axvline(0.5, color="0.7", lw=1)
axes.set(yticks=[0, 1], yticklabels=["from scratch", "fine-tuned"], xlabel="test AUROC")
axes.set(xlim=(0, 1.05), ylim=(-0.6, 1.6))
plt.show()

# %%
# The report
# ----------
# Given several runs, the report compares them on their common test subjects.

neuromamba("report fine_tuned from_scratch --output comparison")
neuromamba.page("comparison/report.html")
