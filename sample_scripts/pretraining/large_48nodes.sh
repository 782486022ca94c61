#!/usr/bin/env bash
# Pre-trains NeuroMamba-Large (11.9M parameters) on 48 nodes of 12 ranks with ZeRO-3: effective batch
# 48 x 12 x 2 = 1,152. On a CPU: SMOKE_ACCELERATOR=cpu bash sample_scripts/pretraining/large_48nodes.sh
#
#     qsub -A PROJECT -q QUEUE -v IMAGE_PATH=/path/to/store sample_scripts/pretraining/large_48nodes.sh

#PBS -N pretrain_large
#PBS -l select=48:ncpus=72:ngpus=6:mpiprocs=12
#PBS -l place=scatter
#PBS -l walltime=06:00:00
#PBS -j oe
#PBS -r y

set -euo pipefail

# --- settings (the others are at the top of common.sh beside this file) ---------------------------
FIXED=(SIZE=large)
ZERO_STAGE=${ZERO_STAGE:-3}
MICRO_BATCH=${MICRO_BATCH:-2}
MAX_TIME=${MAX_TIME:-00:05:40:00} # days:hours:minutes:seconds; below the walltime
# --------------------------------------------------------------------------------------------------

cd "${REPOSITORY:-${PBS_O_WORKDIR:-$PWD}}"
source sample_scripts/pretraining/common.sh
