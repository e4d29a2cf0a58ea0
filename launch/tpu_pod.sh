#!/usr/bin/env bash
# Runs `jaxalign train` on every host of a Cloud TPU slice; the hosts find each other by themselves.
#
#   launch/tpu_pod.sh [--dry-run] NAME ZONE CONFIG [arguments of jaxalign train]
#
# NAME and ZONE are those of the TPU VM. CONFIG is read on the hosts, relative to the checkout there.
# JAXALIGN_REMOTE_DIR  checkout on the hosts, with its environment in .venv (unset: jaxalign, in the home directory)
#
# Put the checkout there once, with the same two commands for every host:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL jaxalign'
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='cd jaxalign && python3.11 -m venv .venv && .venv/bin/pip install .[tpu]'
#
# Give a --workdir that all hosts can reach, such as a mounted bucket; running the same line again resumes the run.
set -euo pipefail

usage() { echo "usage: $0 [--dry-run] NAME ZONE CONFIG [arguments of jaxalign train]" >&2; exit 2; }

dry_run=false
[[ ${1-} == --dry-run ]] && { dry_run=true; shift; }
(( $# >= 3 )) || usage
name=$1 zone=$2 config=$3
shift 3

# The remote shell parses the line once more, so that every word is quoted for it.
remote=$(printf '%q ' .venv/bin/jaxalign train "$config" --distributed "$@")
remote="cd $(printf '%q' "${JAXALIGN_REMOTE_DIR:-jaxalign}") && ${remote% }"
# All hosts must start together: a batch smaller than the slice would wait for ever.
command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all --batch-size=all "--command=$remote")

if $dry_run; then
  line=$(printf '%q ' "${command[@]}"); echo "${line% }"
  exit
fi
command -v gcloud >/dev/null || { echo "gcloud is not installed; see https://cloud.google.com/sdk" >&2; exit 127; }
exec "${command[@]}"
