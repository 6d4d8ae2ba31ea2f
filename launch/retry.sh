#!/usr/bin/env bash
# Runs a command again until it succeeds: for machines that may be taken away at any time.
#
#   bash launch/retry.sh COMMAND...
#
# Any exit code but 0 and 2 (a user's mistake, which no repetition mends) starts it again, at most
# $RECJAX_TRIES times (100), after a pause that doubles from $RECJAX_BACKOFF_S (2 s) to 60 s.
# SIGTERM and SIGINT go to the command; its exit code is then this script's.
set -euo pipefail

# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ $# -eq 0 ]]; then recjax_die "usage: bash launch/retry.sh COMMAND..."; fi
command -v "$1" >/dev/null || recjax_die "no command $1"

tries="${RECJAX_TRIES:-100}"
pause="${RECJAX_BACKOFF_S:-2}"
for ((try = 1; ; try++)); do
  began=$SECONDS
  code=0
  recjax_forward "$@" || code=$?
  if [[ $code -eq 0 || $code -eq 2 || -n "$RECJAX_STOPPED" ]]; then exit "$code"; fi
  if ((try >= tries)); then
    echo "retry: exit code $code, given up after $try tries" >&2
    exit "$code"
  fi
  # What ran for a while had started well: its next failure is a new one.
  if ((SECONDS - began > 300)); then pause="${RECJAX_BACKOFF_S:-2}"; fi
  echo "retry: exit code $code, try $((try + 1)) of $tries in ${pause}s" >&2
  recjax_forward sleep "$pause" || true
  if [[ -n "$RECJAX_STOPPED" ]]; then exit "$code"; fi
  pause=$((pause * 2 > 60 ? 60 : pause * 2))
done
