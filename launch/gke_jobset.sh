#!/usr/bin/env bash
# Fills in launch/gke_jobset.yaml and submits it: `jaxalign train` on TPU slices of GKE.
#
#   IMAGE=... TPU_ACCELERATOR=... TPU_TOPOLOGY=... HOSTS_PER_SLICE=... CHIPS_PER_HOST=... \
#     launch/gke_jobset.sh [--dry-run] CONFIG [arguments of jaxalign train]
#
# IMAGE            container image with jaxalign[tpu] and, at its working directory, CONFIG
# TPU_ACCELERATOR  such as tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
# TPU_TOPOLOGY     such as 4x4 (v5e, v6e) or 2x2x4 (v5p)
# HOSTS_PER_SLICE  and CHIPS_PER_HOST: their product is that of the topology, 4 and 4 for 4x4
# NUM_SLICES       unset: 1
# JOB_NAME         unset: jaxalign
#
# Give a --workdir that outlives the Pods, such as a mounted bucket.
set -euo pipefail

usage() { echo "usage: $0 [--dry-run] CONFIG [arguments of jaxalign train]" >&2; exit 2; }

# One JSON string, which is YAML too.
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

dry_run=false
[[ ${1-} == --dry-run ]] && { dry_run=true; shift; }
(( $# >= 1 )) || usage

COMMAND="[\"jaxalign\", \"train\", $(quoted "$1"), \"--distributed\""
shift
for argument in "$@"; do COMMAND+=", $(quoted "$argument")"; done
COMMAND+="]"
: "${NUM_SLICES:=1}" "${JOB_NAME:=jaxalign}"

manifest=$(<"$(dirname "$0")/gke_jobset.yaml")
names=(JOB_NAME NUM_SLICES HOSTS_PER_SLICE CHIPS_PER_HOST TPU_ACCELERATOR TPU_TOPOLOGY IMAGE COMMAND)
for name in "${names[@]}"; do
  [[ -n ${!name-} ]] || { echo "$name is not set; see the first lines of $0" >&2; exit 2; }
  manifest=${manifest//"\${$name}"/"${!name}"}
done

if $dry_run; then
  echo "$manifest"
  exit
fi
command -v kubectl >/dev/null || { echo "kubectl is not installed" >&2; exit 127; }
kubectl apply -f - <<<"$manifest"
