#!/usr/bin/env bash
# MODPO in one command: DPO on safety gives the margin model, then helpfulness is trained against its implicit reward.
#
#   launch/modpo.sh [--dry-run] DIR [arguments of jaxalign train]
#
# DIR/stage1 and DIR/stage2 become the workdirs of the stages, and DIR/stage2/hf the exported model. The arguments
# hold for both stages. Run the same line again to go on where it stopped.
#
# JAXALIGN_STAGE1, JAXALIGN_STAGE2  other configurations (unset: those of configs/baselines)
set -euo pipefail
# shellcheck source=SCRIPTDIR/stages.bash
source "$(dirname "$0")/stages.bash"

configs=$(dirname "$0")/../configs/baselines

train "$dir/stage1" "${JAXALIGN_STAGE1:-$configs/modpo_stage1.yaml}" "$@"
train "$dir/stage2" "${JAXALIGN_STAGE2:-$configs/modpo_stage2.yaml}" "$@" \
  --set "loss.margin_model=$(quoted "$dir/stage1")"
[[ -e $dir/stage2/hf ]] || step jaxalign export --checkpoint "$dir/stage2" --output "$dir/stage2/hf"
