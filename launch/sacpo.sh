#!/usr/bin/env bash
# SACPO in one command: DPO on helpfulness, then DPO on safety with the first stage as model and reference.
#
#   launch/sacpo.sh [--dry-run] DIR [arguments of jaxalign train]
#
# DIR/stage1 and DIR/stage2 become the workdirs of the stages, each with its exported model in hf/. The arguments
# hold for both stages. Run the same line again to go on where it stopped.
#
# JAXALIGN_STAGE1, JAXALIGN_STAGE2  other configurations (unset: those of configs/baselines)
# JAXALIGN_MERGE_WEIGHT             share of the second stage, such as 0.5, in a merge of both: P-SACPO
#                                   (unset: no merge)
set -euo pipefail
# shellcheck source=SCRIPTDIR/stages.bash
source "$(dirname "$0")/stages.bash"

if [[ -n ${JAXALIGN_MERGE_WEIGHT-} && ! $JAXALIGN_MERGE_WEIGHT =~ ^(0|1|0?\.[0-9]+|[01]\.0+)$ ]]; then
  echo "JAXALIGN_MERGE_WEIGHT=$JAXALIGN_MERGE_WEIGHT: expected a number from 0 to 1, such as 0.5" >&2
  exit 2
fi

configs=$(dirname "$0")/../configs/baselines

# RUN: writes its model in float32, as a rounded one would be another reference.
export_run() { [[ -e $1/hf ]] || step jaxalign export --checkpoint "$1" --output "$1/hf" --dtype f32; }

train "$dir/stage1" "${JAXALIGN_STAGE1:-$configs/sacpo_stage1.yaml}" "$@"
export_run "$dir/stage1"
train "$dir/stage2" "${JAXALIGN_STAGE2:-$configs/sacpo_stage2.yaml}" "$@" \
  --set "model.path=$(quoted "$dir/stage1/hf")"
export_run "$dir/stage2"

if [[ -n ${JAXALIGN_MERGE_WEIGHT-} && ! -e $dir/merged_$JAXALIGN_MERGE_WEIGHT ]]; then
  step jaxalign merge "$dir/stage1" "$dir/stage2" --weight "$JAXALIGN_MERGE_WEIGHT" \
    --output "$dir/merged_$JAXALIGN_MERGE_WEIGHT"
fi
