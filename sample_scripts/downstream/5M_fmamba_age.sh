#!/usr/bin/env bash
# HCP, age, from NeuroMamba-Medium (5.4M) on one GPU. Needs a store of HCP and 5M_E256.pt.
#
#     IMAGE_PATH=/path/to/store CHECKPOINT=/path/to/5M_E256.pt \
#         bash sample_scripts/downstream/5M_fmamba_age.sh          (or sbatch, with #SBATCH below)
#     SMOKE_ACCELERATOR=cpu bash sample_scripts/downstream/5M_fmamba_age.sh

#SBATCH --job-name=5M_fmamba_age
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=6
#SBATCH --mem=48G
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log

set -euo pipefail

# --- settings (the others are at the top of common.sh beside this file) ---------------------------
FIXED=(SIZE=medium TASK=age)
MODE=${MODE:-full} # full; TL: frozen backbone; scratch: without CHECKPOINT
BATCH_SIZE=${BATCH_SIZE:-2}
ACCUMULATION=${ACCUMULATION:-24} # 48 windows a step, as on 2 nodes of 12 devices
# --------------------------------------------------------------------------------------------------

cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-$PWD}}"
source sample_scripts/downstream/common.sh
