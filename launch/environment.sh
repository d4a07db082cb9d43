# shellcheck shell=bash
# Makes the virtual environment that quickstart.sh and tests/run.sh use; sourced by them.
#
#   prepare_environment EXTRAS    creates .venv once and installs ".[EXTRAS]" under constraints.txt
#
# Nothing is installed again until pyproject.toml or constraints.txt changes. PYTHON names another
# interpreter to build the environment with (default: the newest of 3.12, 3.11, 3.10 found).

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
CPU_INDEX="https://download.pytorch.org/whl/cpu"

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Prints the path of a Python 3.10-3.12 that can make virtual environments.
find_python() {
    local candidate path version without_pip=""
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.10 python3 python; do
        path="$(command -v "$candidate")" || continue
        # A version manager's stub may stand for an interpreter that is not there.
        version="$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
            continue
        case "$version" in
            3.10 | 3.11 | 3.12) ;;
            *) continue ;;
        esac
        if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s\n' "$path"
            return
        fi
        without_pip="${without_pip:-$version}"
    done
    if [ -n "$without_pip" ]; then
        fail "Python $without_pip is here without its venv module;" \
            "install it, on Debian and Ubuntu: apt-get install python$without_pip-venv"
    fi
    fail "no Python 3.10, 3.11 or 3.12 found; install one, or name it: PYTHON=/path/to/python"
}

checksum() {
    "$VENV/bin/python" -c '
import hashlib, sys
digest = hashlib.sha256()
for name in sys.argv[2:]:
    digest.update(open(name, "rb").read() + b"\0")
print(digest.hexdigest(), sys.version.split()[0], sys.argv[1])
' "$ROOT" "$ROOT/pyproject.toml" "$ROOT/constraints.txt"
}

index_answers() {
    "$VENV/bin/python" -c '
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5).read(1)
' "$CPU_INDEX" >/dev/null 2>&1 &
    local asking=$! waited=0
    while kill -0 "$asking" 2>/dev/null; do
        if [ "$waited" -ge 50 ]; then # name look-ups have no time-out of their own
            kill "$asking" 2>/dev/null || true
            break
        fi
        sleep 0.1
        waited=$((waited + 1))
    done
    wait "$asking"
}

# Fills TORCH_OPTIONS with what pip needs beside its own settings to find the fitting torch.
choose_torch() {
    TORCH_OPTIONS=()
    local installed
    installed="$("$VENV/bin/python" -c '
from importlib.metadata import version
print(version("torch"))' 2>/dev/null)" || installed=""
    if [ "${installed%%+*}" = "$TORCH_VERSION" ]; then
        echo "torch: $installed, installed before"
    elif [ "$(uname -s)" != Linux ]; then
        echo "torch: the build for $(uname -s)"
    elif command -v nvidia-smi >/dev/null 2>&1; then
        echo "torch: the CUDA build, as this machine has an NVIDIA driver"
    elif "$VENV/bin/python" -m pip install --quiet --dry-run --no-deps --ignore-installed \
        "torch==${TORCH_VERSION}+cpu" >/dev/null 2>&1; then
        echo "torch: the CPU build (no NVIDIA GPU here), which pip finds by itself"
    elif index_answers; then
        echo "torch: the CPU build (no NVIDIA GPU here) from $CPU_INDEX"
        TORCH_OPTIONS=(--extra-index-url "$CPU_INDEX")
    else
        echo "torch: $CPU_INDEX does not answer, so pip takes the default build;" \
            "it works without a GPU, but is a download of some GB if it brings CUDA"
    fi
}

check_torch() {
    "$VENV/bin/python" - "$TORCH_VERSION" <<'PYTHON' || fail "torch is not usable in $VENV"
import shutil
import sys

import torch

wanted = sys.argv[1]
if torch.__version__.split("+")[0] != wanted:
    sys.exit(f"error: torch {torch.__version__} is installed, {wanted} is needed")
if torch.version.cuda and not shutil.which("nvidia-smi"):
    print(f"torch {torch.__version__} is a CUDA build on a machine without an NVIDIA GPU: it works")
PYTHON
}

prepare_environment() {
    local extras="$1" stamp python started=$SECONDS
    stamp="$VENV/spade-installed-$extras"
    if [ -d "$VENV" ] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "removing $VENV: it is incomplete"
        rm -rf "$VENV"
    fi
    if [ ! -d "$VENV" ]; then
        python="$(find_python)"
        echo "creating $VENV with $python"
        "$python" -m venv "$VENV"
    fi
    export PATH="$VENV/bin:$PATH"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(checksum)" ]; then
        return
    fi
    TORCH_VERSION="$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$ROOT/constraints.txt")"
    choose_torch
    echo "installing spade-pretrain[$extras] into $VENV (minutes, the first time)"
    (cd -- "$ROOT" && "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
        ${TORCH_OPTIONS[@]+"${TORCH_OPTIONS[@]}"} \
        --constraint constraints.txt --editable ".[$extras]")
    check_torch
    checksum >"$stamp"
    echo "installed in $((SECONDS - started)) s"
}
