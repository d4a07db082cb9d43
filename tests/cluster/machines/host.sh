#!/usr/bin/env bash
# The first process of a host: gives it what belongs to one machine alone, then waits. Everything on
# the host ends with it, and it ends with its standard input, that is with the tests.
#
#   host.sh NAME FOLDER       prints its process number as seen from outside
set -euo pipefail
name=$1 folder=$2

read -r pid _ </proc/self/stat # of the /proc outside, before there is one inside
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/munge
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$folder/ssh/ssh_config" /etc/ssh/ssh_config
if [ -d ~/.ssh ]; then
    mount -t tmpfs -o mode=700 tmpfs ~/.ssh # who runs the tests keeps own keys and settings
fi
echo "$name" >/proc/sys/kernel/hostname
echo "$pid"
while read -r _; do :; done # bash buries orphans meanwhile, as the first process must
