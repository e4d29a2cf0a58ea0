#!/usr/bin/env bash
# Runs `jaxalign train` as N processes on this machine, joined through jax.distributed.
#
#   launch/local_processes.sh [--dry-run] N CONFIG [arguments of jaxalign train]
#
# JAXALIGN_DEVICES_PER_PROCESS  gives each process that many virtual CPU devices (unset: the real devices)
# JAXALIGN_PORT                 port of the coordinator (unset: a random one)
#
# Every line of output starts with the number of its process. If one process fails, the others are stopped and
# its status is returned. TERM and INT are passed on as TERM, at which a run saves and exits.
set -euo pipefail

usage() { echo "usage: $0 [--dry-run] N CONFIG [arguments of jaxalign train]" >&2; exit 2; }

dry_run=false
[[ ${1-} == --dry-run ]] && { dry_run=true; shift; }
(( $# >= 2 )) || usage
[[ $1 =~ ^[1-9][0-9]*$ ]] || { echo "N=$1 is not a number of processes" >&2; usage; }
num_processes=$1 config=$2
shift 2
[[ -f $config ]] || { echo "CONFIG=$config is not a file" >&2; exit 2; }

devices=()
if [[ -n ${JAXALIGN_DEVICES_PER_PROCESS-} ]]; then
  devices=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$JAXALIGN_DEVICES_PER_PROCESS")
fi
coordinator=127.0.0.1:${JAXALIGN_PORT:-$((20000 + RANDOM % 20000))}

pids=()
stop() { kill "-$1" "${pids[@]}" 2>/dev/null || true; }
trap 'stop TERM' TERM INT

for ((i = 0; i < num_processes; i++)); do
  command=(env "JAX_COORDINATOR_ADDRESS=$coordinator" "JAX_NUM_PROCESSES=$num_processes" "JAX_PROCESS_ID=$i"
    ${devices[@]+"${devices[@]}"} jaxalign train "$config" --distributed "$@")
  if $dry_run; then
    line=$(printf '%q ' "${command[@]}"); echo "${line% }"
  else
    "${command[@]}" > >(awk -v prefix="[$i] " '{ print prefix $0; fflush() }') 2>&1 &
    pids+=($!)
  fi
done

status=0 deadline=0
while (( ${#pids[@]} > 0 )); do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    code=0; wait "${pids[i]}" || code=$?
    unset "pids[i]"
    if (( code != 0 && status == 0 )); then
      echo "process $i failed with status $code; stopping the others" >&2
      status=$code deadline=$((SECONDS + 10)); stop TERM
    fi
  done
  # A process that waits for the dead one in a collective operation does not hear TERM.
  if (( deadline > 0 && SECONDS >= deadline )); then stop KILL; fi
  sleep 0.2 || true
done
exit "$status"
