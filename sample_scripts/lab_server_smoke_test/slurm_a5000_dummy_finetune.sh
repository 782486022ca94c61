#!/usr/bin/env bash
# Does a released checkpoint load, with each head, trained and frozen? Needs no data; without
# CHECKPOINT it makes an untrained file of the same layout.
#
#     CHECKPOINT=/path/to/3M_E192.pt sbatch sample_scripts/lab_server_smoke_test/slurm_a5000_dummy_finetune.sh
#     SMOKE_ACCELERATOR=cpu bash sample_scripts/lab_server_smoke_test/slurm_a5000_dummy_finetune.sh

#SBATCH --job-name=dummy_finetune
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=00:30:00
#SBATCH --output=%x_%j.log

set -euo pipefail

# --- settings (the others are at the top of sample_scripts/common.sh) -----------------------------
SMOKE_ACCELERATOR=${SMOKE_ACCELERATOR:-gpu}
CHECKPOINT=${CHECKPOINT:-} # of SIZE, and for windows of 96 x 96 x 96 x 20 if it was released
SIZE=${SIZE:-base}         # small: 1M_E128.pt, base: 3M_E192.pt, medium: 5M_E256.pt
HEADS=${HEADS:-linear mamba}
FREEZE=${FREEZE:-0 1} # 1 trains the head only
PRECISION=${PRECISION:-bf16}
OUTPUT=${OUTPUT:-output/smoke_test/dummy_finetune_${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)}}
[[ -n $CHECKPOINT ]] && IMG_SIZE=${IMG_SIZE:-96 96 96 20}
# --------------------------------------------------------------------------------------------------

cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-$PWD}}"
source sample_scripts/common.sh
one_of SIZE small base medium large
each_of HEADS linear mamba
each_of FREEZE 0 1

if [[ -z $CHECKPOINT ]]; then
    CHECKPOINT=$OUTPUT/untrained.pt
    dummy_checkpoint "$CHECKPOINT" --config "configs/neuromamba_$SIZE.yaml"
fi
for head in $HEADS; do
    for freeze in $FREEZE; do
        echo "== head $head, backbone $([[ $freeze == 1 ]] && echo frozen || echo trained)"
        frozen=()
        [[ $freeze == 1 ]] && frozen=(--freeze_feature_extractor)
        train --config "configs/neuromamba_$SIZE.yaml" --load_model_path "$CHECKPOINT" \
            --downstream_task sex --clf_head_version "$head" "${frozen[@]}" \
            --precision "$PRECISION" --output_dir "$OUTPUT/${head}_freeze$freeze"
    done
done
echo "smoke test passed: $OUTPUT"
