#!/usr/bin/env bash
# What both images consist of; Dockerfile and spade.def call this once a part:
#
#   system   Debian packages, a user, an sshd that needs no root
#   torch    the virtual environment with torch, as TORCH_INDEX says
#   package  the package with the extras in EXTRAS
set -euo pipefail

HOME_FOLDER=/opt/spade
VENV="$HOME_FOLDER/venv"
SOURCE="$HOME_FOLDER/source"

install_system() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # A compiler: DeepSpeed builds its collectives for CPUs at the first start, for the CPU it finds.
    apt-get install -qq --no-install-recommends \
        ca-certificates g++ python3 python3-dev python3-venv \
        openmpi-bin openssh-client openssh-server
    rm -rf /var/lib/apt/lists/*
    # No two machines may have the same host key, as they would from one image.
    rm -f /etc/ssh/ssh_host_*
    useradd --create-home --uid 1000 --shell /bin/bash spade
    configure_ssh
}

# The MPI Operator gives all pods of a job one key of the job's own, mounted at ~/.ssh. It serves as
# host key as well, so that mpirun knows the machines it reaches from the first time on.
configure_ssh() {
    install -m 755 "$HOME_FOLDER/containers/known-host" /usr/local/bin/known-host
    cat >/etc/ssh/sshd_config.spade <<'CONFIG'
Port 2222
PidFile none
HostKey /home/spade/.ssh/id_rsa
AuthorizedKeysFile /home/spade/.ssh/authorized_keys
# The keys belong to root, as everything of a mounted Secret.
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
CONFIG
    cat >/etc/ssh/ssh_config.d/spade.conf <<'CONFIG'
Match localuser spade
    Port 2222
    IdentityFile /home/spade/.ssh/id_rsa
    PasswordAuthentication no
    StrictHostKeyChecking yes
    UserKnownHostsFile /dev/null
    KnownHostsCommand /usr/local/bin/known-host %H
CONFIG
}

install_torch() {
    local options=()
    if [ -n "${TORCH_INDEX:-}" ]; then
        options=(--extra-index-url "$TORCH_INDEX")
    fi
    python3 -m venv "$VENV"
    cd "$SOURCE"
    "$VENV/bin/python" -m pip install --quiet --no-cache-dir \
        ${options[@]+"${options[@]}"} --constraint constraints.txt torch
}

install_package() {
    cd "$SOURCE"
    "$VENV/bin/python" -m pip install --quiet --no-cache-dir \
        --constraint constraints.txt ".[${EXTRAS:-hf}]"
    cd /
    rm -rf "$SOURCE"
    "$VENV/bin/spade" --help >/dev/null
}

case "${1:-}" in
    system) install_system ;;
    torch) install_torch ;;
    package) install_package ;;
    *)
        echo "usage: install.sh system|torch|package" >&2
        exit 2
        ;;
esac
