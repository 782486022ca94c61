#!/usr/bin/env bash
# Five epochs of HCP sex on part of the subjects: data, checkpoint and GPU as in a real run.
#
#     IMAGE_PATH=/path/to/hcp_store CHECKPOINT=/path/to/3M_E192.pt \
#         sbatch sample_scripts/lab_server_smoke_test/slurm_a5000_hcp_finetune_smoke.sh

#SBATCH --job-name=hcp_finetune_smoke
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=48G
#SBATCH --time=04:00:00
#SBATCH --output=%x_%j.log

set -euo pipefail

# --- settings (the others are at the top of sample_scripts/common.sh) -----------------------------
IMAGE_PATH=${IMAGE_PATH:-} # the store of HCP
DATASET_NAME=${DATASET_NAME:-HCP}
CHECKPOINT=${CHECKPOINT:-} # of SIZE; empty trains from scratch
SIZE=${SIZE:-base}         # small: 1M_E128.pt, base: 3M_E192.pt, medium: 5M_E256.pt
TASK=${TASK:-sex}
HEAD=${HEAD:-mamba}
EPOCHS=${EPOCHS:-5}
TRAIN_SUBJECTS=${TRAIN_SUBJECTS:-80} # 60 windows a run of 1,200 frames
EVAL_SUBJECTS=${EVAL_SUBJECTS:-20}   # for validation, and as many for testing
BATCH_SIZE=${BATCH_SIZE:-2}
PRECISION=${PRECISION:-bf16}
OUTPUT=${OUTPUT:-output/smoke_test/hcp_finetune_${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)}}
# --------------------------------------------------------------------------------------------------

ACCELERATOR=${SMOKE_ACCELERATOR:-${ACCELERATOR:-gpu}}
SMOKE_ACCELERATOR= # not a trial of a few batches
cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-$PWD}}"
source sample_scripts/common.sh
one_of SIZE small base medium large

train --config "configs/neuromamba_$SIZE.yaml" ${CHECKPOINT:+--load_model_path "$CHECKPOINT"} \
    --downstream_task "$TASK" --clf_head_version "$HEAD" \
    --dataset_name "$DATASET_NAME" --image_path "$IMAGE_PATH" \
    --limit_training_samples "$TRAIN_SUBJECTS" --limit_validation_samples "$EVAL_SUBJECTS" \
    --limit_test_samples "$EVAL_SUBJECTS" --batch_size "$BATCH_SIZE" --max_epochs "$EPOCHS" \
    --precision "$PRECISION" --output_dir "$OUTPUT"
echo "smoke test passed: $OUTPUT"
