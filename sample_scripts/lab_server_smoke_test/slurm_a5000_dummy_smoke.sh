#!/usr/bin/env bash
# Does the installation work? Pre-trains, fine-tunes and tests on synthetic data; needs no data.
#
#     sbatch sample_scripts/lab_server_smoke_test/slurm_a5000_dummy_smoke.sh
#     SMOKE_ACCELERATOR=cpu bash sample_scripts/lab_server_smoke_test/slurm_a5000_dummy_smoke.sh

#SBATCH --job-name=dummy_smoke
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=00:30:00
#SBATCH --output=%x_%j.log

set -euo pipefail

# --- settings (the others are at the top of sample_scripts/common.sh) -----------------------------
SMOKE_ACCELERATOR=${SMOKE_ACCELERATOR:-gpu}
SMOKE_BATCHES=${SMOKE_BATCHES:-10}
SIZE=${SIZE:-base}        # small, base, medium, large
PRECISION=${PRECISION:-bf16}
OUTPUT=${OUTPUT:-output/smoke_test/dummy_smoke_${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)}}
# --------------------------------------------------------------------------------------------------

cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-$PWD}}"
source sample_scripts/common.sh
one_of SIZE small base medium large

echo "== 1 of 3: pre-training"
train --config "configs/neuromamba_$SIZE.yaml" --pretraining --use_autoregressive \
    --precision "$PRECISION" --output_dir "$OUTPUT/pretrain"
echo "== 2 of 3: fine-tuning"
train --downstream_task sex --clf_head_version mamba \
    --load_model_path "$OUTPUT/pretrain/checkpoints/best.ckpt" \
    --precision "$PRECISION" --output_dir "$OUTPUT/finetune"
echo "== 3 of 3: testing"
train --test_only --test_ckpt_path "$OUTPUT/finetune/checkpoints/best.ckpt" \
    --precision "$PRECISION" --output_dir "$OUTPUT/test"
echo "smoke test passed: $OUTPUT"
