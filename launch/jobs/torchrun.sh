#!/usr/bin/env bash
# Training as processes of torchrun, which meet over TCP: no MPI is needed.
# usage: launch/jobs/torchrun.sh RANKS [options of allnorm train]
# On several hosts, on each of them, RANKS per host:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.7 ALLNORM_JOB_TOKEN_FILE=token launch/jobs/torchrun.sh 4
# with the hosts' number, this one's, and an address of the first. There the ranks need a secret of the job, the same on
# all: openssl rand -hex 16 > token; chmod 600 token. They meet at MASTER_ADDR, port MASTER_PORT + 1 (29501), and then
# connect with each other at ports of the systems' choice: no firewall may stand between the hosts.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ranks=${1:?the number of ranks of a host}
shift
program=$root/build/cpu/launch/allnorm
[ -x "$program" ] || program=$(command -v allnorm)  # of an installation
# -- : torchrun would take --log for one of its own
exec torchrun --no-python --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$ranks" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
  -- "$program" train --norm batch_norm,sync_batch_norm --log torchrun.jsonl --report torchrun.html "$@"
