#!/usr/bin/env bash
# Training on the hosts of a host file (one "HOST slots=N" a line), one rank per slot.
# usage: launch/jobs/mpirun.sh HOSTFILE RANKS [options of allnorm train]
# The program and the data must be reachable under the same path on every host.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
hosts=${1:?the host file} ranks=${2:?the number of ranks}
shift 2
program=$root/build/cpu/launch/allnorm
[ -x "$program" ] || program=$(command -v allnorm)  # of an installation
exec mpirun --hostfile "$hosts" -n "$ranks" "$program" train \
  --norm batch_norm,sync_batch_norm --log mpirun.jsonl --report mpirun.html "$@"
