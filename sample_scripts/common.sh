# shellcheck shell=bash
# Sourced by the scripts below this folder, in the repository's folder: how they start python.
#
#   train FLAGS...                   project/main.py: a process for each device under PBS (mpiexec)
#                                    and Slurm (srun), by itself elsewhere; with SMOKE_ACCELERATOR a
#                                    short trial on one device
#   dummy_checkpoint FILE FLAGS...   see dummy_checkpoint.py
#
# Settings, from the environment; what they cannot be is refused with status 2 (checks.sh):
IMAGE_PATH=${IMAGE_PATH:-}                   # folder of the store
PYTHON=${PYTHON:-}                           # empty: .venv of the repository, else python3
SITE_SETUP=${SITE_SETUP:-}                   # a file to source first: module load ..., export ...
DEVICES=${DEVICES:-1}                        # processes on a node, one for each device
ACCELERATOR=${ACCELERATOR:-gpu}              # gpu is CUDA or XPU, what there is
NUM_WORKERS=${NUM_WORKERS:-4}                # loading processes of each of them
MPIEXEC_FLAGS=${MPIEXEC_FLAGS:-}             # e.g. --cpu-bind depth --depth 8
SRUN_FLAGS=${SRUN_FLAGS:-}                   # e.g. --mpi=none
EXTRA_FLAGS=${EXTRA_FLAGS:-}                 # appended to those of project/main.py, e.g. --dry_run
SMOKE_ACCELERATOR=${SMOKE_ACCELERATOR:-}     # cpu or gpu: a trial of a few batches, on Dummy data
                                             # where IMAGE_PATH is empty
SMOKE_BATCHES=${SMOKE_BATCHES:-2}            # batches of training, validation and test in it
SMOKE_SUBJECTS=${SMOKE_SUBJECTS:-10}         # subjects of the Dummy data
IMG_SIZE=${IMG_SIZE:-}                       # X Y Z T of a window, where the store has another grid

source sample_scripts/checks.sh
if [[ -n $SITE_SETUP ]]; then
    [[ -f $SITE_SETUP ]] || refuse "SITE_SETUP is '$SITE_SETUP', and there is no such file."
    # shellcheck disable=SC1090
    source "$SITE_SETUP"
fi
if [[ -z $PYTHON ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=$PWD/.venv/bin/python
fi
[[ -n $(command -v -- "$PYTHON") ]] || refuse "PYTHON is '$PYTHON', and there is no such program."
numbers DEVICES SMOKE_BATCHES SMOKE_SUBJECTS
[[ $NUM_WORKERS == 0 ]] || numbers NUM_WORKERS
one_of ACCELERATOR auto cpu gpu cuda xpu
[[ -z $SMOKE_ACCELERATOR ]] || one_of SMOKE_ACCELERATOR cpu gpu cuda xpu
[[ $IMAGE_PATH =~ ^[[:space:]]*$ ]] && IMAGE_PATH=

# Nodes of the job, and where rank 0 is.
job_nodes=1
if [[ -n ${PBS_NODEFILE:-} ]]; then
    [[ -f $PBS_NODEFILE ]] || refuse "PBS_NODEFILE is '$PBS_NODEFILE', and there is no such file."
    job_nodes=$(sort -u "$PBS_NODEFILE" | wc -l)
    MASTER_ADDR=${MASTER_ADDR:-$(head -n 1 "$PBS_NODEFILE")}
    export MASTER_ADDR
elif [[ -n ${SLURM_JOB_ID:-} ]]; then
    job_nodes=${SLURM_JOB_NUM_NODES:-1}
fi
NODES=${NODES:-$job_nodes}
if [[ $NODES != "$job_nodes" ]]; then
    refuse "NODES is '$NODES', and the job has $job_nodes; the scheduler says it, leave NODES unset."
fi
numbers NODES
# Many processes on a node: threads of libraries would only get in each other's way.
if ((DEVICES > 1)); then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi

if [[ -z $IMAGE_PATH && -z $SMOKE_ACCELERATOR ]]; then
    refuse "IMAGE_PATH is empty; set it to the folder of the store, or SMOKE_ACCELERATOR=cpu for" \
        "a trial on synthetic data."
fi
if [[ -z $IMG_SIZE && -z $IMAGE_PATH && $SMOKE_ACCELERATOR == cpu ]]; then
    IMG_SIZE="30 36 30 20" # a trial takes seconds
fi
if [[ -n $IMG_SIZE && ! $IMG_SIZE =~ ^([1-9][0-9]* +){3}[1-9][0-9]*$ ]]; then
    refuse "IMG_SIZE is '$IMG_SIZE', expected four numbers, X Y Z T, such as 96 96 96 20."
fi
read -ra GRID <<<"${IMG_SIZE:+--img_size }$IMG_SIZE"

# An untrained checkpoint in the layout of the released files, for trials: file, flags of the model.
dummy_checkpoint() {
    local extra
    read -ra extra <<<"$EXTRA_FLAGS"
    "$PYTHON" sample_scripts/dummy_checkpoint.py "${@:2}" "${GRID[@]}" "${extra[@]}" --output "$1"
}

# Flags that turn the run of these flags into a trial.
smoke_flags() {
    local name=${PBS_JOBNAME:-${SLURM_JOB_NAME:-$(basename "$0" .sh)}}
    local flags=(--accelerator "$SMOKE_ACCELERATOR" --devices 1 --num_nodes 1 --strategy auto
        --max_epochs 1 --batch_size 2 --gradient_accumulation_steps 1 --num_workers 0
        --limit_train_batches "$SMOKE_BATCHES" --limit_val_batches "$SMOKE_BATCHES"
        --limit_test_batches "$SMOKE_BATCHES" --loggername csv
        --project_name smoke_test --process_code "${name}_$(date +%Y%m%d-%H%M%S)")
    if [[ $SMOKE_ACCELERATOR == cpu ]]; then
        flags+=(--precision 32)
    fi
    if [[ -z $IMAGE_PATH && " $* " != *" --test_only "* ]]; then # which knows its data
        flags+=(--dataset_name Dummy --dummy_subjects "$SMOKE_SUBJECTS")
    fi
    printf '%s\n' "${flags[@]}"
}

train() {
    local launcher=() flags=("$@" "${GRID[@]}") extra more trial
    read -ra extra <<<"$EXTRA_FLAGS"
    if [[ -n $SMOKE_ACCELERATOR ]]; then
        mapfile -t trial < <(smoke_flags "$@")
        flags+=("${trial[@]}")
        if [[ -n ${SLURM_JOB_ID:-} ]]; then
            launcher=(srun --ntasks 1 --nodes 1)
        fi
    else
        flags+=(--accelerator "$ACCELERATOR" --devices "$DEVICES" --num_nodes "$NODES"
            --num_workers "$NUM_WORKERS")
        if [[ -n ${PBS_NODEFILE:-} ]]; then
            launcher=(mpiexec -n "$((NODES * DEVICES))" -ppn "$DEVICES")
            read -ra more <<<"$MPIEXEC_FLAGS"
            launcher+=("${more[@]}")
        elif [[ -n ${SLURM_JOB_ID:-} ]]; then
            launcher=(srun --nodes "$NODES" --ntasks-per-node "$DEVICES")
        fi
    fi
    if [[ ${launcher[0]:-} == srun ]]; then
        # One task that fails ends the others; since Slurm 22.05 srun has to be told the cores.
        launcher+=(--kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
        read -ra more <<<"$SRUN_FLAGS"
        launcher+=("${more[@]}")
    fi
    "${launcher[@]}" "$PYTHON" project/main.py "${flags[@]}" "${extra[@]}"
}
