#!/usr/bin/env bash
# Everything a change must pass: ruff, mypy, the fast tests, then those that start processes.
#
#   bash tests/run.sh                       all of it
#   bash tests/run.sh -x                    all of it, with options for pytest
#   bash tests/run.sh tests/launch -k help  these tests only
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/environment.sh"

# Paths on the command line are meant from where it was typed.
arguments=()
chosen=0
for argument in "$@"; do
    path="${argument%%::*}"
    case "$argument" in
        -*) ;;
        *) if [ -e "$path" ]; then
            argument="$(cd -- "$(dirname -- "$path")" && pwd)/$(basename -- "$path")${argument#"$path"}"
            chosen=1
        fi ;;
    esac
    arguments+=("$argument")
done

cd -- "$ROOT"
prepare_environment hf,mpi,dev
PYTEST=("$VENV/bin/python" -m pytest -rs --durations=15)

if [ "$chosen" = 1 ]; then
    exec "${PYTEST[@]}" "${arguments[@]}"
fi

failed=()
check() {
    local name="$1" started=$SECONDS code=0
    shift
    printf '\n== %s ==\n' "$name"
    "$@" || code=$?
    if [ "$code" = 5 ] && [ "${#arguments[@]}" -gt 0 ]; then
        echo "the options given select none of these"
    elif [ "$code" != 0 ]; then
        failed+=("$name")
    fi
    printf '== %s: %d s ==\n' "$name" "$((SECONDS - started))"
}

check "ruff check" "$VENV/bin/ruff" check .
check "ruff format" "$VENV/bin/ruff" format --check .
check "mypy" "$VENV/bin/mypy"
# One process a core. The slow ones start processes themselves and wait for them half of the time: a
# third worker takes what two leave idle of two cores.
check "fast tests" "${PYTEST[@]}" -n logical --maxprocesses 8 \
    -m "not slow and not cluster" ${arguments[@]+"${arguments[@]}"}
check "slow tests" "${PYTEST[@]}" -n 3 --dist worksteal \
    -m "slow or cluster" ${arguments[@]+"${arguments[@]}"}

if [ "${#failed[@]}" -gt 0 ]; then
    printf '\nfailed: %s\n' "$(printf '%s; ' "${failed[@]}")" >&2
    exit 1
fi
printf '\nall passed\n'
