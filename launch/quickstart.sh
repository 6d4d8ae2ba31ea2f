#!/usr/bin/env bash
# From a fresh machine to a first result: own virtual environment, demo data, the main experiment,
# its table.
#
#   bash launch/quickstart.sh [WORKDIR]      (default ./runs/quickstart)
#
# Needs Python 3.11 or newer and a package index, nothing else. Started again after an
# interruption it goes on where it stopped. launch/environment.sh lists the variables that choose
# interpreter and jax.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/environment.sh
. "$here/environment.sh"

if [[ $# -gt 1 || "${1:-}" == -* ]]; then
  recjax_die "usage: bash launch/quickstart.sh [WORKDIR]"
fi
workdir="${1:-runs/quickstart}"
mkdir -p "$workdir" || recjax_die "cannot make the folder $workdir; name another one"
workdir="$(cd "$workdir" && pwd)"

step() {
  local name="$1" code=0
  shift
  echo
  echo "== $name (${SECONDS}s)"
  recjax_forward "$@" || code=$?
  if [[ $code -ne 0 ]]; then
    echo "stopped after ${SECONDS}s (exit code $code); the same command goes on from here" >&2
    exit "$code"
  fi
}

echo "== virtual environment"
recjax_environment
cd "$here/.."
export PYTHONUNBUFFERED=1

step "demo data" "$PYTHON" -m recjax.prepare --config=configs/data/demo.py \
  --data_dir="$workdir/data"
step "pre-train, transfer, compare" "$PYTHON" -m recjax.study --config=configs/studies/demo.py \
  --workdir="$workdir/study" --config.data_dir="$workdir/data"

cat <<END

== done in ${SECONDS}s
  $workdir/study/report.md    the table above, with significance and plots
  $workdir/study/             one folder a run: config.json, metrics.jsonl, checkpoints, report.json
  $workdir/data/              the prepared data
Next: README.md, "On real data"; this environment's interpreter is $PYTHON
END
