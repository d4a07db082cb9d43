#!/usr/bin/env bash
# Installs, on Debian and Ubuntu, the programs with which the tests of launchers raise hosts and
# schedulers. Nothing happens where they are there or where it cannot be done: it says why, and the
# tests that miss a program are skipped and say so too.
#
#   bash tests/cluster/machines/packages.sh
set -euo pipefail

# Program and the package it comes with.
NEEDED="slurmctld:slurm-wlm munged:munge sshd:openssh-server ssh:openssh-client ip:iproute2
    mpiexec.openmpi:openmpi-bin"
POLICY=/usr/sbin/policy-rc.d

packages=()
for pair in $NEEDED; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
if [ "${#packages[@]}" = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, as that needs root and apt-get: ${packages[*]}"
    exit 0
fi

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
if [ ! -e "$POLICY" ]; then # none of the packages' daemons is to start: tests start their own
    trap 'rm -f "$log" "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod +x "$POLICY"
fi
echo "installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! { timeout 120 apt-get update -qq &&
    timeout 300 apt-get install -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    echo "could not install ${packages[*]}:"
    tail -n 5 "$log"
fi
