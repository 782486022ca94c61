# shellcheck shell=bash
# Sourced by the scripts beside and below it, in the repository's folder, after FIXED (SIZE, TASK,
# perhaps MODE) and MODE are set. Published settings: README.md, "Downstream".

source sample_scripts/checks.sh
fixed "${FIXED[@]}"

# --- settings, from the environment ---------------------------------------------------------------
IMAGE_PATH=${IMAGE_PATH:-}                  # the store of HCP
DATASET_NAME=${DATASET_NAME:-HCP}
CHECKPOINTS=${CHECKPOINTS:-checkpoints}     # folder of the released files
HEAD=${HEAD:-mamba}                         # linear, mamba
EPOCHS=${EPOCHS:-30}
BATCH_SIZE=${BATCH_SIZE:-2}                 # windows a device
ACCUMULATION=${ACCUMULATION:-1}             # batches of an optimiser step
STRATEGY=${STRATEGY:-auto}
SEEDS=${SEEDS:-1234 1235 1236}              # one for each task of an array; the first elsewhere
PROJECT_NAME=${PROJECT_NAME:-hcp_$TASK}
RESUME=${RESUME-last}                      # its own newest checkpoint; one by name; empty: anew
LOGGER=${LOGGER:-csv}                       # wandb, tensorboard
# --------------------------------------------------------------------------------------------------

declare -A FILES=([small]=1M_E128.pt [base]=3M_E192.pt [medium]=5M_E256.pt)
source sample_scripts/common.sh
one_of MODE full TL scratch
numbers EPOCHS BATCH_SIZE ACCUMULATION
CHECKPOINT=${CHECKPOINT:-$CHECKPOINTS/${FILES[$SIZE]}}

read -ra seeds <<<"$SEEDS"
index=${PBS_ARRAY_INDEX:-${SLURM_ARRAY_TASK_ID:-0}}
SEED=
[[ $index =~ ^(0|[1-9][0-9]*)$ ]] && SEED=${seeds[index]:-}
if [[ ! $SEED =~ ^[0-9]+$ ]]; then
    refuse "SEEDS is '$SEEDS', which has no number for task $index of the array; give one for each" \
        "task (the first is task 0)."
fi

START=()
if [[ $MODE != scratch ]]; then
    if [[ -n $SMOKE_ACCELERATOR && ! -e $CHECKPOINT ]]; then
        # A trial needs no trained weights, only their layout.
        CHECKPOINT=output/smoke_test/untrained_$SIZE.pt
        dummy_checkpoint "$CHECKPOINT" --config "configs/neuromamba_$SIZE.yaml"
    fi
    START=(--load_model_path "$CHECKPOINT")
    [[ $MODE == TL ]] && START+=(--freeze_feature_extractor)
fi

train --config "configs/neuromamba_$SIZE.yaml" "${START[@]}" \
    --downstream_task "$TASK" --clf_head_version "$HEAD" \
    --dataset_name "$DATASET_NAME" ${IMAGE_PATH:+--image_path "$IMAGE_PATH"} \
    --batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$ACCUMULATION" --seed "$SEED" \
    --precision bf16 --strategy "$STRATEGY" --max_epochs "$EPOCHS" \
    ${MAX_TIME:+--max_time "$MAX_TIME"} ${RESUME:+--resume_ckpt_path "$RESUME"} \
    --loggername "$LOGGER" --project_name "$PROJECT_NAME" \
    --process_code "${SIZE}_${HEAD}_${MODE}_seed$SEED"
