# shellcheck shell=bash
# Sourced by the scripts beside it, in the repository's folder, after FIXED, ZERO_STAGE, MICRO_BATCH
# and MAX_TIME are set. Published settings: README.md, "Pre-training".

source sample_scripts/checks.sh
fixed "${FIXED[@]}"

# --- settings, from the environment ---------------------------------------------------------------
IMAGE_PATH=${IMAGE_PATH:-}                # stores, separated by spaces
DATASET_NAME=${DATASET_NAME:-S1200}       # their cohorts, in the same order, e.g. "UKB ABCD S1200"
EFFECTIVE_BATCH=${EFFECTIVE_BATCH:-1152}  # reached by accumulation, whatever the number of nodes
PROJECT_NAME=${PROJECT_NAME:-neuromamba_pretrain}
RUN_NAME=${RUN_NAME:-$SIZE}               # a requeued or following job finds its run by this name
RESUME=${RESUME-last}                    # its own newest checkpoint; one by name; empty: anew
LOGGER=${LOGGER:-csv}                     # wandb, tensorboard
DEVICES=${DEVICES:-12}                    # processes on a node: 6 GPUs of 2 tiles on Aurora
# --------------------------------------------------------------------------------------------------

source sample_scripts/common.sh
numbers MICRO_BATCH EFFECTIVE_BATCH
one_of ZERO_STAGE 1 2 3 2_offload 3_offload

STEP=$((NODES * DEVICES * MICRO_BATCH))
if ((EFFECTIVE_BATCH % STEP)); then
    refuse "$NODES nodes of $DEVICES processes with micro batch $MICRO_BATCH give $STEP windows," \
        "which do not divide EFFECTIVE_BATCH=$EFFECTIVE_BATCH; change MICRO_BATCH or the nodes."
fi
read -ra STORES <<<"$IMAGE_PATH"
read -ra COHORTS <<<"$DATASET_NAME"

train --config "configs/neuromamba_$SIZE.yaml" \
    --pretraining --use_autoregressive \
    --dataset_name "${COHORTS[@]}" ${STORES[@]:+--image_path "${STORES[@]}"} \
    --batch_size "$MICRO_BATCH" --gradient_accumulation_steps "$((EFFECTIVE_BATCH / STEP))" \
    --precision bf16 --strategy "deepspeed_stage_$ZERO_STAGE" \
    --max_epochs 40 --learning_rate 1e-4 --weight_decay 1e-2 --max_time "$MAX_TIME" \
    ${RESUME:+--resume_ckpt_path "$RESUME"} \
    --loggername "$LOGGER" --project_name "$PROJECT_NAME" --process_code "$RUN_NAME"
