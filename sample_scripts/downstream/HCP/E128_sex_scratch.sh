#!/usr/bin/env bash
# HCP, sex, NeuroMamba-Small (1.4M), from scratch; a task of the array for each of three seeds.
# README.md beside this file says how to submit it.

#PBS -N E128_sex_scratch
#PBS -J 0-2
#PBS -l select=2:ncpus=72:ngpus=6:mpiprocs=12
#PBS -l place=scatter
#PBS -l walltime=06:00:00
#PBS -j oe
#PBS -r y

set -euo pipefail

# --- settings (the others are at the top of sample_scripts/downstream/common.sh) ------------------
FIXED=(SIZE=small TASK=sex MODE=scratch)
DEVICES=${DEVICES:-12} # processes on a node
STRATEGY=${STRATEGY:-deepspeed_stage_1}
MAX_TIME=${MAX_TIME:-00:05:40:00} # days:hours:minutes:seconds; below the walltime
# --------------------------------------------------------------------------------------------------

cd "${REPOSITORY:-${PBS_O_WORKDIR:-$PWD}}"
source sample_scripts/downstream/common.sh
