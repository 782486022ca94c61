"""
Memory and hours for a cluster
==============================

Before asking for GPUs: what fits, how large the batches can be, how long it takes, and the job
script. Nothing here needs a GPU or data.
"""

# %%
# A plan
# ------
# ``plan`` takes the flags of ``train``, and the hardware. The memory is predicted by formulas
# that were compared with trainings on CPUs; the rate of a GPU is an assumption until it has been
# measured.

import json

import matplotlib.pyplot as plt

from neuromamba.common.notebook import CommandLine

neuromamba = CommandLine(lines=40)
neuromamba(
    "plan --pretraining --use_autoregressive --embed_dim 192 --depth 12 --max_epochs 40 "
    "--gpus 8 --gpu A100-80GB --subjects 1000 --frames 1200 --json plan.json"
)

# %%
# Memory against batch
# --------------------
# The memory of a rank grows with the windows that it holds at once. The effective batch of a step
# stays the same: a smaller batch accumulates more of them.

plan = json.loads((neuromamba.folder / "plan.json").read_text())
windows = [option["micro"] for option in plan["options"]]
memory = [option["memory"] / 1e9 for option in plan["options"]]
chosen = plan["chosen"]

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
axes.plot(windows, memory, "-o", color="C0")
axes.plot(
    chosen["micro"], chosen["memory"] / 1e9, "o", color="C1", ms=11, mfc="none", label="chosen"
)
for name, gigabytes in (("RTX 3090", 25.8), ("A100, 40 GB", 42.9), ("A100, 80 GB", 85.9)):
    axes.axhline(gigabytes, color="0.7", lw=1)
    axes.text(windows[0], gigabytes + 1, name, fontsize=8)
axes.set(xlabel="windows of a rank at once (--batch_size)", ylabel="GB of a rank", ylim=(0, 100))
axes.legend(loc="lower right")
plt.show()

# %%
# Hours
# -----
# At the assumed share of the GPU's peak rate. ``neuromamba profile`` measures the share on your
# machine, and ``--utilisation`` takes it.

share = plan["request"]["utilisation"]
print(
    f"{plan['schedule']['steps']} steps, {plan['hours']:.2f} hours at {share:.0%} of the peak rate"
)

# %%
# The job script
# --------------
# ``--script slurm`` or ``--script pbs`` writes it, with the batches of the plan.

neuromamba(
    "plan --pretraining --use_autoregressive --embed_dim 192 --depth 12 --max_epochs 40 --gpus 8 "
    "--gpu A100-80GB --subjects 1000 --frames 1200 --image_path store "
    "--script slurm --output job.sh"
)
print((neuromamba.folder / "job.sh").read_text())
