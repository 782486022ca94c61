#!/usr/bin/env bash
# Creates the Python environment and installs what the framework needs, in the order that works:
# torch, the requirements, then the optional CUDA kernels and DeepSpeed.
#
# One function per step. A step calls `plan` to say what it is about to do (a dry run stops there),
# `row` to put its outcome into the closing table, and `mark` to leave a stamp in the environment
# that lets the next run skip it. To add a step: write a function and add it to `main`.
# Runs on bash 3.2 (macOS): no associative arrays, no `mapfile`.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: bash setup_env.sh [--dev] [--docs] [--kernels-test] [--force] [--dry-run]

  --dev           also install the tools for tests and checks (requirements-dev.txt)
  --docs          also install what builds the site (requirements-docs.txt)
  --kernels-test  also install Triton and mamba-ssm without a GPU, for the test that interprets
                  their kernels on the CPU
  --force         repeat every step, finished ones included
  --dry-run       print what would be done and change nothing

Environment variables:
  NEUROMAMBA_VENV_PATH   where the environment goes (default: .venv in the repository)
  PYTHON                 the Python to create it with (default: the first >= 3.10 on PATH)
  TORCH_INDEX_URL        package index to take torch from, e.g. https://download.pytorch.org/whl/cu128
  NEUROMAMBA_GPU=1|0     plan for a machine with or without an NVIDIA GPU instead of asking
                         nvidia-smi, e.g. on a cluster's login node
  NEUROMAMBA_DEEPSPEED=1|0  install DeepSpeed, or leave it out (default: with a GPU or --dev)
TEXT
}

MIN_TORCH=2.6
CPU_INDEX=https://download.pytorch.org/whl/cpu
INTERPRETED_TRITON=triton==3.9.0 # without CUDA it serves tests only, and fits any torch

DEV=0 DOCS=0 KERNELS_TEST=0 FORCE=0 DRY_RUN=0
for argument in "$@"; do
    case $argument in
        --dev) DEV=1 ;;
        --docs) DOCS=1 ;;
        --kernels-test) KERNELS_TEST=1 ;;
        --force) FORCE=1 ;;
        --dry-run) DRY_RUN=1 ;;
        -h | --help) usage && exit 0 ;;
        *)
            echo "setup_env.sh: unknown argument '$argument'." >&2
            usage >&2
            exit 2
            ;;
    esac
done

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=${NEUROMAMBA_VENV_PATH:-$ROOT/.venv}
case $VENV in
    /*) ;;
    *) VENV=$PWD/$VENV ;;
esac
VPY=$VENV/bin/python
STATE=$VENV/.setup
cd "$ROOT"

# Python runs with -I below, so that neither PYTHONPATH (the README sets it to this folder) nor the
# current folder (which may hold an empty `deepspeed/`) nor ~/.local is mistaken for installed
# packages; the processes that pip starts do not get -I, hence the `unset`.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

# --- reporting ------------------------------------------------------------------------------

TABLE=""
CHANGED=0 # something was installed
WARNED=0  # an optional step failed, now or earlier

row() { # step, outcome, detail
    TABLE+=$(printf '  %-16s %-10s %s' "$1" "$2" "$3")$'\n'
}

plan() { # step, detail: announce; in a dry run, note it down and return 1
    if ((DRY_RUN)); then
        row "$1" would "$2"
        return 1
    fi
    CHANGED=1
    echo "==> $1: $2"
}

print_table() {
    [[ -z $TABLE ]] || printf '\n  %-16s %-10s %s\n%s\n' step outcome detail "$TABLE"
}

fail() { # step, what happened, remedy
    print_table >&2
    printf 'setup_env.sh: step "%s" failed: %s\n  Remedy: %s\n' "$1" "$2" "$3" >&2
    exit 1
}

warn() { # step, what happened, remedy
    WARNED=1
    row "$1" FAILED "$2; optional: everything else works without it"
    row "" "" "remedy: $3"
}

PIP_REMEDY="read pip's last lines above. Without network: set HTTPS_PROXY, or PIP_INDEX_URL to a mirror.
    Disk full (torch takes 1 GB, with CUDA 6 GB): set NEUROMAMBA_VENV_PATH to another disk.
    Then run setup_env.sh again; finished steps are not repeated."

# --- stamps ---------------------------------------------------------------------------------

mark() { # step, key, result
    mkdir -p "$STATE"
    echo "$2 $3" >"$STATE/$1"
}

stamped() { # step, key: print the result of an earlier run that is still valid
    ((!FORCE)) && [[ -f $STATE/$1 ]] && [[ $(cut -d' ' -f1 "$STATE/$1") == "$2" ]] &&
        cut -d' ' -f2- "$STATE/$1"
}

key_of() { # files: changes with their content and with the Python version
    "$1" -I -c '
import hashlib, sys
digest = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    digest.update(open(name, "rb").read())
print(digest.hexdigest()[:16])' "${@:2}"
}

# --- what this machine has ------------------------------------------------------------------

GPU=${NEUROMAMBA_GPU:-}
if [[ -z $GPU ]]; then
    GPU=0
    [[ $(nvidia-smi -L 2>/dev/null || true) != *GPU* ]] || GPU=1
fi

has_nvcc() {
    command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]
}

answers() { # URL: does it answer within 5 seconds?
    if command -v curl >/dev/null; then
        curl --silent --fail --location --max-time 5 --output /dev/null "$1"
    else
        "$VPY" -I -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$1"
    fi 2>/dev/null
}

new_enough() { # python: exists, runs and is >= 3.10
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

working_torch() { # python: print the version of its torch if that is recent and computes
    "$1" -I -W ignore -c '
import sys, torch
assert torch.__version__ >= sys.argv[1]
assert torch.ones(2).sum().item() == 2
print(torch.__version__)' "$MIN_TORCH" 2>/dev/null
}

installed_version() { # package
    "$VPY" -I -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null
}

pip_install() {
    local quiet=-q
    [[ -t 1 ]] && quiet="" # a person wants to see the download's progress, a log does not
    # shellcheck disable=SC2086 # an empty $quiet must vanish
    "$VPY" -I -m pip install $quiet "$@"
}

# --- steps ----------------------------------------------------------------------------------

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        new_enough "$PYTHON" || fail python \
            "PYTHON=$PYTHON is not a Python >= 3.10 ($("$PYTHON" --version 2>&1 || true))." \
            "name another one, e.g. PYTHON=python3.12 bash setup_env.sh"
        BASE_PYTHON=$PYTHON
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if new_enough "$candidate"; then
            BASE_PYTHON=$candidate
            return
        fi
    done
    fail python "no Python >= 3.10 on PATH (python3 is $(python3 --version 2>&1 || true))." \
        "install one (python.org, conda, or your system's package) or name it: PYTHON=/path/to/python3"
}

step_python() {
    if [[ -f $VENV/pyvenv.cfg ]]; then
        new_enough "$VPY" || fail python "$VENV exists, but its Python is broken or older than 3.10." \
            "remove it (rm -r '$VENV') and run setup_env.sh again, or set NEUROMAMBA_VENV_PATH."
        if "$VPY" -I -c 'import pip' 2>/dev/null; then
            row python ready "Python $("$VPY" -V | cut -d' ' -f2) in $VENV"
            return
        fi
    elif [[ -d $VENV && -n $(ls -A "$VENV") ]]; then
        fail python "$VENV exists and is not a virtual environment." \
            "set NEUROMAMBA_VENV_PATH to a folder that is new or empty."
    fi

    find_python
    "$BASE_PYTHON" -I -c 'import ensurepip, venv' 2>/dev/null || fail python \
        "$(command -v "$BASE_PYTHON") cannot create environments: its module ensurepip is missing." \
        "on Debian and Ubuntu ask for the package python3-venv (or python3.X-venv); or set PYTHON to another Python."

    # A torch of the machine (a container's, or one built for its GPU) is worth keeping: the new
    # environment then sees the packages of its base Python. TORCH_INDEX_URL asks for another.
    local base options=() site="" version
    base=$("$BASE_PYTHON" -I -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)')
    if [[ -z ${TORCH_INDEX_URL:-} ]] && version=$(working_torch "$base"); then
        options+=(--system-site-packages)
        site=", with the packages of $base (torch $version)"
    fi
    version=$("$base" -V | cut -d' ' -f2)
    plan python "create $VENV with Python $version$site" || {
        [[ -z $site ]] || VPY=$base # so that the dry run's next steps see the torch to keep
        return 0
    }
    "$base" -I -m venv ${options[@]+"${options[@]}"} "$VENV" || fail python \
        "cannot create $VENV." "see the message above; is the folder writable and the disk not full?"
    row python created "Python $version in $VENV$site"
}

step_torch() {
    local version pin key=torch source="the ordinary index" arguments=()
    if [[ -x $VPY ]]; then
        # The stamp spares the import: the closing check makes it anyway.
        if stamped torch "$key" >/dev/null && version=$(installed_version torch); then
            row torch ready "$version"
            return
        fi
        if version=$(working_torch "$VPY"); then
            row torch kept "$version works${TORCH_INDEX_URL:+; to use TORCH_INDEX_URL, remove $VENV first}"
            ((DRY_RUN)) || mark torch "$key" kept
            return
        fi
    fi

    pin=$(grep -E '^torch==' constraints.txt)
    if [[ -n ${TORCH_INDEX_URL:-} ]]; then
        # That index decides the version, and brings the CUDA libraries that belong to it.
        arguments=(--index-url "$TORCH_INDEX_URL" "torch>=$MIN_TORCH")
        source="$TORCH_INDEX_URL (TORCH_INDEX_URL)"
    elif [[ $(uname -s) == Darwin ]]; then
        arguments=("$pin" -c constraints.txt)
    elif ((GPU)); then
        arguments=("$pin" -c constraints.txt)
        source="the ordinary index, with CUDA (NVIDIA GPU)"
    elif answers "$CPU_INDEX/torch/"; then
        # What torch depends on comes with the requirements: this index has only some releases.
        arguments=(--index-url "$CPU_INDEX" --no-deps "$pin")
        source="$CPU_INDEX (no NVIDIA GPU)"
    else
        arguments=("$pin" -c constraints.txt)
        source="the ordinary index (no NVIDIA GPU; $CPU_INDEX does not answer)"
    fi
    plan torch "install ${arguments[*]/#-c/with} from $source" || return 0
    pip_install "${arguments[@]}" || fail torch "pip could not install torch from $source." "$PIP_REMEDY
    No wheel for this Python or machine: set PYTHON to another Python, or TORCH_INDEX_URL to an index that has one."
    mark torch "$key" installed
    row torch installed "$(installed_version torch) from $source"
}

# The pins to use in this environment: constraints.txt, except that the torch at hand and the
# packages that a container brought along keep their versions.
effective_constraints() {
    mkdir -p "$STATE"
    "$VPY" -I - constraints.txt >"$STATE/constraints.txt" <<'PY'
import importlib.metadata
import pathlib
import re
import sys


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


kept = {"torch"}
for dist in importlib.metadata.distributions():
    if not str(dist.locate_file("")).startswith(sys.prefix):
        kept.add(canonical(dist.metadata["Name"]))
for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
    name = re.match(r"[\w.-]+", line)
    if name and canonical(name[0]) not in kept:
        print(line)
print("torch==" + importlib.metadata.version("torch"))
PY
}

requirements_key() { # file to install; the others are those that it includes
    key_of "$VPY" setup_env.sh constraints.txt requirements.txt project/neurossm/requirements.txt "$1"
}

step_requirements() {
    local name=requirements file=requirements.txt key
    if ((DEV)); then
        name=requirements-dev file=requirements-dev.txt
    fi
    if [[ -x $VPY ]]; then
        key=$(requirements_key "$file")
        if stamped "$name" "$key" >/dev/null; then
            row "$name" ready "$file"
            return
        fi
    fi
    plan "$name" "install $file with constraints.txt" || return 0
    effective_constraints
    pip_install -r "$file" -c "$STATE/constraints.txt" ||
        fail "$name" "pip could not install $file." "$PIP_REMEDY"
    mark "$name" "$key" installed
    if ((DEV)); then # requirements-dev.txt includes requirements.txt
        mark requirements "$(requirements_key requirements.txt)" installed
    fi
    row "$name" installed "$file, versions of constraints.txt"
}

step_docs() {
    local file=requirements-docs.txt key
    ((DOCS)) || return 0
    if [[ -x $VPY ]]; then
        key=$(key_of "$VPY" setup_env.sh constraints.txt "$file")
        if stamped docs "$key" >/dev/null; then
            row docs ready "$file"
            return
        fi
    fi
    plan docs "install $file with constraints.txt" || return 0
    effective_constraints
    pip_install -r "$file" -c "$STATE/constraints.txt" ||
        fail docs "pip could not install $file." "$PIP_REMEDY"
    mark docs "$key" installed
    row docs installed "$file, versions of constraints.txt"
}

# Run an optional installation: remember failure too, so that a second run does not repeat a long
# build that is bound to fail again.
optional() { # step, detail, remedy, function that installs
    local step=$1 detail=$2 remedy=$3 key earlier
    key=torch-$(installed_version torch || true) # what was compiled fits one torch only
    if earlier=$(stamped "$step" "$key"); then
        if [[ $earlier == failed ]]; then
            warn "$step" "failed in an earlier run" "$remedy; then bash setup_env.sh --force"
        else
            row "$step" ready "$(installed_version "$step")"
        fi
        return
    fi
    plan "$step" "$detail" || return 0
    if "$4"; then
        mark "$step" "$key" installed
        row "$step" installed "$(installed_version "$step")"
    else
        mark "$step" "$key" failed
        warn "$step" "see pip's lines above" "$remedy"
    fi
}

# Without build isolation a package finds the torch it must match, but also has to find its tools.
build_tools() { pip_install setuptools wheel packaging ninja -c "$STATE/constraints.txt"; }

# Only mamba-ssm's Triton kernels are of use here: these need no compiler. The switches leave out
# its CUDA extension (Mamba-1; nvcc and half an hour) and a download from GitHub. With them the wheel
# of 2.3.2.post1 is pure Python; its setup.py, the only thing on PyPI, fails without them where
# there is no nvcc.
install_mamba_ssm() {
    build_tools && MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
        pip_install --no-deps --no-build-isolation mamba-ssm
}

# torch's CUDA builds for Linux bring their own Triton.
install_triton() {
    "$VPY" -I -c 'import triton' 2>/dev/null || pip_install --no-deps "$INTERPRETED_TRITON"
}

step_triton() { # without a GPU nobody else needs it
    ((!KERNELS_TEST)) || optional triton "install $INTERPRETED_TRITON, to interpret kernels" \
        "there are wheels for Linux only; a test is skipped" install_triton
}

step_mamba_ssm() {
    if ((!GPU && !KERNELS_TEST)); then
        row mamba-ssm skipped "no NVIDIA GPU"
        return
    fi
    optional mamba-ssm "install without its dependencies and without build isolation" \
        "check that '$VENV/bin/python -c \"import torch, triton\"' works" install_mamba_ssm
}

# The first try takes a ready-made wheel from GitHub if there is one, the second compiles.
install_causal_conv1d() {
    build_tools && {
        pip_install --no-deps --no-build-isolation causal-conv1d ||
            CAUSAL_CONV1D_FORCE_BUILD=TRUE pip_install --no-deps --no-build-isolation causal-conv1d
    }
}

step_causal_conv1d() {
    if ((!GPU)); then
        row causal-conv1d skipped "no NVIDIA GPU"
    elif ! has_nvcc; then
        row causal-conv1d skipped "no nvcc (CUDA toolkit); a plain convolution takes its place"
    else
        optional causal-conv1d "install without build isolation (nvcc compiles, minutes)" \
            "make nvcc's major CUDA version (nvcc -V) that of torch.version.cuda" install_causal_conv1d
    fi
}

install_deepspeed() { pip_install deepspeed -c "$STATE/constraints.txt"; }

step_deepspeed() {
    local wanted=${NEUROMAMBA_DEEPSPEED:-}
    if [[ $wanted == 0 ]]; then
        row deepspeed skipped "NEUROMAMBA_DEEPSPEED=0"
    elif [[ $wanted != 1 ]] && ((!GPU && !DEV)); then
        row deepspeed skipped "no NVIDIA GPU (NEUROMAMBA_DEEPSPEED=1 installs it all the same)"
    else
        optional deepspeed "install deepspeed with constraints.txt" \
            "train with --strategy ddp, or mend what pip names" \
            install_deepspeed
    fi
}

has_setuptools() { # python: the version that pyproject.toml asks for
    "$1" -I -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null
}

# The package itself, editable: `import neuromamba` and the command `neuromamba` follow the checkout.
# Without build isolation, for which pip would download setuptools every time; what it depends on is
# there already.
step_package() {
    local key
    if [[ -x $VPY ]]; then
        key=$(key_of "$VPY" pyproject.toml)
        if [[ $(stamped package "$key") == "$ROOT" && -x $VENV/bin/neuromamba ]]; then
            row package ready "neuromamba, editable"
            return
        fi
    fi
    plan package "install neuromamba from $ROOT, editable, without dependencies" || return 0
    has_setuptools "$VPY" || pip_install 'setuptools>=77' -c "$STATE/constraints.txt" ||
        fail package "pip could not install setuptools." "$PIP_REMEDY"
    pip_install --no-deps --no-build-isolation -e "$ROOT" ||
        fail package "pip could not install $ROOT." "$PIP_REMEDY"
    mark package "$key" "$ROOT"
    row package installed "neuromamba, editable"
}

# The C passes of the scan. Not `optional`: that keys by torch's version, this by its own source.
step_native() {
    local result options=()
    if ((DRY_RUN)); then
        row native would "compile project/neuromamba/layers/ssd_native/kernels.c where there is a C compiler"
        return
    fi
    ((!FORCE)) || options+=(--force)
    if result=$(PYTHONPATH=$ROOT/project "$VPY" -s -m neuromamba build-kernels ${options[@]+"${options[@]}"} 2>&1); then
        row native "$([[ $result == ready* ]] && echo ready || echo built)" "${result#* }"
        [[ $result == ready* ]] || CHANGED=1
    else
        WARNED=1
        row native skipped "${result##*error: }; plain torch takes its place, 2 to 3 times slower on a CPU"
        row "" "" "remedy: install a C compiler (Debian, Ubuntu: gcc; or set CC) and run setup_env.sh again"
    fi
}

step_check() {
    if ((DRY_RUN)); then
        row check would "import torch and look for every package of requirements.txt"
        return
    fi
    local result
    result=$("$VPY" -I -W ignore - requirements.txt 2>&1 <<'PY'
import importlib.metadata
import pathlib
import re
import sys

names = re.findall(r"(?m)^[A-Za-z][\w.-]*", pathlib.Path(sys.argv[1]).read_text())
missing = []
for name in names:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        missing.append(name)
if missing:
    sys.exit("not installed: " + ", ".join(missing))

import torch

torch.ones(2).numpy()  # fails when torch and numpy do not fit each other
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(f"torch {torch.__version__}, CUDA device: {gpu}")
PY
    ) || {
        rm -rf "$STATE"
        fail check "the environment does not work: $(tail -n 1 <<<"$result")" \
            "run setup_env.sh again, it installs afresh; if it stays, remove $VENV first."
    }
    row check ok "$result"
    if [[ $result == *"device: none" ]] && nvidia-smi -L >/dev/null 2>&1; then
        WARNED=1
        row "" "" "torch does not see the GPU. Remedy: remove $VENV and run setup_env.sh again;"
        row "" "" "if that is no help, set TORCH_INDEX_URL to an index for the driver's CUDA version"
        row "" "" "(nvidia-smi shows it), e.g. TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126"
    fi
}

main() {
    step_python
    step_torch
    step_requirements
    step_docs
    step_triton
    step_mamba_ssm
    step_causal_conv1d
    step_deepspeed
    step_package
    step_native
    step_check

    if ((DRY_RUN)); then
        print_table
    elif ((CHANGED || WARNED)); then
        print_table
        echo "Ready. Activate it with: source '$VENV/bin/activate'"
    else
        echo "Environment $VENV is up to date."
    fi
}

main
