# shellcheck shell=bash
# What the recipes with two stages share; sourced by them, not run. All of it may be run again: a run goes on from
# its newest checkpoint, and what has been written already stays.
#
# [--dry-run] and DIR are taken from the arguments, which are then those of `jaxalign train`.

usage() { echo "usage: $0 [--dry-run] DIR [arguments of jaxalign train]" >&2; exit 2; }

dry_run=false pid='' stopped=false
[[ ${1-} == --dry-run ]] && { dry_run=true; shift; }
(( $# >= 1 )) && [[ $1 != -* ]] || usage
dir=$1
shift
for argument in "$@"; do
  [[ $argument != --workdir* ]] || { echo "leave out --workdir: the stages lie in DIR=$dir" >&2; exit 2; }
done

# At TERM and INT a run saves and exits; nothing is started after it.
stop() {
  stopped=true
  [[ -n $pid ]] || exit 143
  kill -TERM "$pid" 2>/dev/null || true
}
trap stop TERM INT

# Prints a command and runs it; with --dry-run it is only printed.
step() {
  local line status=0
  line=$(printf '%q ' "$@")
  if $dry_run; then echo "${line% }"; return; fi
  printf '\n\033[1m$ %s\033[0m\n' "${line% }"
  "$@" &
  pid=$!
  wait "$pid" || status=$?
  if $stopped; then
    wait "$pid" || true # the signal has ended the first wait, not yet the command
    echo "stopped; run the same line again to go on" >&2
    exit 143
  fi
  pid=''
  return "$status"
}

# RUN CONFIG [arguments]: trains in the workdir RUN to the last step; a run that was stopped exits with 0 too.
train() {
  local run=$1 config=$2
  shift 2
  step jaxalign train "$config" --workdir "$run" "$@"
  $dry_run || [[ -e $run/finished.json ]] || {
    echo "$run has not come to its last step; run the same line again to go on" >&2
    exit 1
  }
}

# PATH as a value of --set, whatever characters it has.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }
