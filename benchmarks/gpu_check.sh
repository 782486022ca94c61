#!/usr/bin/env bash
# Parity and throughput on a CUDA GPU, in one call of at most 9 minutes; no internet needed.
#
#   bash benchmarks/gpu_check.sh
#
# Uses the environment of setup_env.sh if its torch sees the GPU, else python3 (or PYTHON=...). What
# is missing is taken from benchmarks/gpu_wheels/ (`make gpu-wheels`, on a machine with internet;
# then copy the repository with that folder), and causal-conv1d is compiled for this card while the
# first steps run. Results: benchmarks/results/gpu_check_cuda.{json,md}, and gpu_check.log beside it.
# Exit status: 0 if the tests passed, every contender ran, losses on the same tokens agree and memory
# is as predicted (what is left out for lack of time is named); 1 if not, the table is printed all the same; 2 without a GPU.
#
#   NEUROMAMBA_GPU_CHECK_SECONDS   the limit (default 530)
#   NEUROMAMBA_GPU_CHECK_RESULTS   where results go instead
set -uo pipefail

case ${1:-} in
    "") ;;
    -h | --help)
        sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'
        exit 0
        ;;
    *)
        echo "gpu_check.sh: unknown argument '$1'; it takes none but --help." >&2
        exit 2
        ;;
esac

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
LIMIT=${NEUROMAMBA_GPU_CHECK_SECONDS:-530}
WHEELS=$ROOT/benchmarks/gpu_wheels
RESULTS=${NEUROMAMBA_GPU_CHECK_RESULTS:-$ROOT/benchmarks/results}
SECONDS=0 # bash counts from here

sees_gpu() { "$1" -W ignore -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

PY=""
for candidate in ${PYTHON:+"$PYTHON"} "${NEUROMAMBA_VENV_PATH:-$ROOT/.venv}/bin/python" python3; do
    if command -v "$candidate" >/dev/null && sees_gpu "$candidate"; then
        PY=$candidate
        break
    fi
done
if [[ -z $PY ]]; then
    echo "gpu_check.sh: no CUDA GPU: neither PYTHON, nor the repository's environment, nor python3 has a torch that sees one. Run it on a machine with an NVIDIA GPU; without one, see 'make bench'." >&2
    exit 2
fi

WORK=$(mktemp -d)
JOBS=()
# Ends what is still running in the background, by process group.
finish() {
    local job
    for job in ${JOBS[@]+"${JOBS[@]}"}; do kill -- "-$job" 2>/dev/null; done
    rm -rf "$WORK"
    exec >/dev/null 2>&1 # ends tee, whose last lines are waited for
    wait "$TEE"
}
mkdir -p "$RESULTS"
exec > >(tee "$RESULTS/gpu_check.log") 2>&1
TEE=$!
trap finish EXIT

left() { echo $((LIMIT - SECONDS)); }
say() { printf '\n==> [%3d s] %s\n' "$SECONDS" "$*"; }
has() { "$PY" -W ignore -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
carried() { compgen -G "$WHEELS/$1-*" | head -n 1; }

# Installs stay out of the machine's Python: folders on PYTHONPATH, gone at the end.
SITE=$WORK/site CONV=$WORK/conv
mkdir -p "$SITE" "$CONV"
export PYTHONPATH=$SITE:$ROOT:$ROOT/project PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export TRITON_CACHE_DIR=$WORK/triton # shared by the processes below
export NEUROMAMBA_CACHE=$WORK/cache  # the kernels are compared with the reference here, every time

install() { # module, distribution as in the file's name
    has "$1" && return
    local file
    file=$(carried "$2")
    if [[ -z $file ]]; then
        echo "missing: $1 (neither installed nor in benchmarks/gpu_wheels; make gpu-wheels)"
    elif MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE timeout 120 "$PY" -m pip install -q \
        --no-index --no-deps --no-build-isolation --no-compile --target "$SITE" "$file"; then
        echo "installed for this run: $(basename "$file")"
    else
        echo "could not install: $(basename "$file")"
    fi
}

say "packages"
install einops einops
install lightning_utilities lightning_utilities
install torchmetrics torchmetrics
install pytorch_lightning pytorch_lightning
install nibabel nibabel
install mamba_ssm mamba_ssm

# In the background, each in a process group of its own (set -m).
in_background() { # log, seconds, command...
    local log=$1 seconds=$2
    shift 2
    set -m
    timeout "$seconds" "$@" >"$WORK/$log.log" 2>&1 &
    set +m
    JOBS+=($!)
    disown
}

build_conv() { # compile for this card only: all the architectures of its setup.py take too long
    local file arch
    file=$(carried causal_conv1d)
    arch=$("$PY" -W ignore -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    mkdir "$WORK/conv_source"
    tar -xzf "$file" -C "$WORK/conv_source" --strip-components=1
    sed -i -E \
        -e 's/cc_flag\.append\("-gencode"\)/pass/' \
        -e "s/cc_flag\.append\(\"arch=[^\"]*\"\)/cc_flag[:] = [\"-gencode\", \"arch=compute_$arch,code=sm_$arch\"]/" \
        "$WORK/conv_source/setup.py"
    CAUSAL_CONV1D_FORCE_BUILD=TRUE MAX_JOBS=8 in_background conv 280 "$PY" -m pip install \
        --no-index --no-deps --no-build-isolation --no-compile --target "$CONV" "$WORK/conv_source"
}

CONV_WAY="causal-conv1d is installed here"
if ! has causal_conv1d; then
    CONV_WAY="no causal-conv1d: convolution in torch"
    if [[ -z $(carried causal_conv1d) ]]; then
        echo "missing: causal_conv1d (make gpu-wheels)"
    elif ! command -v nvcc >/dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
        echo "missing: nvcc, to compile causal-conv1d"
    else
        say "compiling causal-conv1d in the background"
        build_conv
    fi
fi

say "compiling the Triton kernels of the four sizes in the background"
for size in small base medium large; do
    in_background "warm_$size" 280 "$PY" -W ignore benchmarks/gpu_check.py --warm --sizes "$size"
done

STATUS=0
parity() { # seconds, what
    say "tests on the GPU, $2"
    if ! has pytest; then
        echo "missing: pytest"
        STATUS=1
        return
    fi
    # -W default: other versions than the pinned ones may warn, which is an error elsewhere.
    timeout "$1" "$PY" -m pytest tests/gpu tests/integration/test_training_on_gpu.py -m gpu \
        -q -W default -p no:cacheprovider -p no:xdist ||
        STATUS=1
}

parity 180 "before causal-conv1d"

say "waiting for the compilers"
running() { kill -0 "$1" 2>/dev/null; }
for job in "${JOBS[@]}"; do
    while running "$job" && (($(left) > 240)); do sleep 1; done
done
if compgen -G "$CONV/causal_conv1d_cuda*" >/dev/null; then
    export PYTHONPATH=$CONV:$PYTHONPATH
    if "$PY" -W ignore -c 'import causal_conv1d'; then
        CONV_WAY="causal-conv1d, compiled here"
        parity 90 "with causal-conv1d (fused)"
    fi
elif [[ -f $WORK/conv.log ]]; then
    echo "causal-conv1d was not compiled; its last lines:"
    tail -n 5 "$WORK/conv.log"
fi
for size in small base medium large; do
    [[ ! -s $WORK/warm_$size.log ]] || sed "s/^/warm $size: /" "$WORK/warm_$size.log" | tail -n 3
done
# Nothing may run beside what is timed.
for job in "${JOBS[@]}"; do kill -- "-$job" 2>/dev/null; done
JOBS=()

say "throughput ($CONV_WAY)"
rm -f "$RESULTS/gpu_check_cuda.md"
timeout "$(($(left) - 5))" "$PY" -W ignore benchmarks/gpu_check.py --budget "$(($(left) - 45))" \
    --json "$RESULTS/gpu_check_cuda.json" >"$WORK/table.log" 2>&1 || STATUS=1
grep -i -E 'error|warning' "$WORK/table.log" | tail -n 15

# Whole trainings need more packages than are carried, and what is left of the time.
if has h5py && has hdf5plugin && has pandas && has nilearn && (($(left) > 90)); then
    say "peak memory of trainings beside what doctor.py plan predicts"
    timeout "$(($(left) - 10))" "$PY" -W ignore benchmarks/memory_plan.py --device cuda \
        --budget "$(($(left) - 60))" --json "$RESULTS/memory_plan_cuda.json" || STATUS=1
fi
say "results ($RESULTS/gpu_check_cuda.json)"
cat "$RESULTS/gpu_check_cuda.md" || STATUS=1
say "done, status $STATUS"
exit "$STATUS"
