#!/usr/bin/env bash
# Pre-trains NeuroMamba-Medium (5.4M parameters) on 32 nodes of 12 ranks with ZeRO-1: effective batch
# 32 x 12 x 3 = 1,152. On a CPU: SMOKE_ACCELERATOR=cpu bash sample_scripts/pretraining/medium_32nodes.sh
#
#     qsub -A PROJECT -q QUEUE -v IMAGE_PATH=/path/to/store sample_scripts/pretraining/medium_32nodes.sh

#PBS -N pretrain_medium
#PBS -l select=32:ncpus=72:ngpus=6:mpiprocs=12
#PBS -l place=scatter
#PBS -l walltime=06:00:00
#PBS -j oe
#PBS -r y

set -euo pipefail

# --- settings (the others are at the top of common.sh beside this file) ---------------------------
FIXED=(SIZE=medium)
ZERO_STAGE=${ZERO_STAGE:-1}
MICRO_BATCH=${MICRO_BATCH:-3}
MAX_TIME=${MAX_TIME:-00:05:40:00} # days:hours:minutes:seconds; below the walltime
# --------------------------------------------------------------------------------------------------

cd "${REPOSITORY:-${PBS_O_WORKDIR:-$PWD}}"
source sample_scripts/pretraining/common.sh
