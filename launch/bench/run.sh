#!/usr/bin/env bash
# recjax's training step against its peers', from nothing: environments, data, options, the table.
#
#   bash launch/bench/run.sh [OUT]      OUT (default runs/bench) gets comparison.md and comparison.json
#
# Environment variables:
#   RECJAX_DATA       a folder with the prepared data set ml1m; otherwise OUT/data is made, from
#   RECJAX_RAW        MovieLens-1M as in recjax.prepare's --raw_dir, or else downloaded
#   RECJAX_BENCH_ENVS where the peers' environments are made (default
#                     ${XDG_CACHE_HOME:-~/.cache}/recjax/bench; a few GB)
#   RECJAX_TORCH_INDEX  an index with CPU builds of torch (default PyTorch's own); "" for PyPI's
#   TASKS             default bert4rec,sasrec,sasrec_bce,caser
#   ROUNDS            default 5
#
# An hour on two cores, most of it for finding the hand-tuned PyTorch's options and for compiling.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/environment.sh
. launch/environment.sh
out="${1:-runs/bench}"
envs="${RECJAX_BENCH_ENVS:-${XDG_CACHE_HOME:-${HOME:?set HOME or RECJAX_BENCH_ENVS}/.cache}/recjax/bench}"
tasks="${TASKS:-bert4rec,sasrec,sasrec_bce,caser}"
index="${RECJAX_TORCH_INDEX-https://download.pytorch.org/whl/cpu}"
mkdir -p "$out" "$envs"
recjax_environment

# An index that cannot be reached costs minutes of retries: ask it first.
if [[ -n "$index" ]] && ! "$PYTHON" - "$index/torch/" <<'END'
import sys, urllib.request
try:
  urllib.request.urlopen(sys.argv[1], timeout=10).close()
except OSError as error:
  sys.exit(f"{sys.argv[1]}: {error}; taking torch from the default index")
END
then
  index=""
fi

base="$(recjax_find_python)"
for name in torch recbole rectools; do
  wanted="$(cat "launch/bench/requirements-$name.txt") $("$base" --version)"
  if [[ "$(cat "$envs/$name/recjax.stamp" 2>/dev/null)" == "$wanted" ]]; then continue; fi
  echo "making the environment $envs/$name"
  if [[ -e "$envs/$name" && ! -e "$envs/$name/pyvenv.cfg" ]]; then
    recjax_die "$envs/$name is no environment; set RECJAX_BENCH_ENVS to another folder"
  fi
  "$base" -m venv --clear "$envs/$name"
  # A peer that cannot be installed here is missing from the table, and named there.
  if "$envs/$name/bin/python" -m pip --disable-pip-version-check --quiet install \
      ${index:+--extra-index-url "$index"} -r "launch/bench/requirements-$name.txt"; then
    echo "$wanted" >"$envs/$name/recjax.stamp"
  else
    echo "$name cannot be installed here, see above" >&2
    rm -rf "${envs:?}/$name/bin"
  fi
done

data="${RECJAX_DATA:-$out/data}"
if [[ ! -e "$data/ml1m/manifest.json" ]]; then
  if [[ -n "${RECJAX_RAW:-}" ]]; then
    "$PYTHON" -m recjax.prepare --config=configs/data/ml1m.py --raw_dir="$RECJAX_RAW" --data_dir="$data"
  else
    "$PYTHON" -m recjax.prepare --config=configs/data/ml1m.py --raw_dir="$out/raw" --data_dir="$data" \
      --config.download=true
  fi
fi

common=(--data_dir="$data" --out="$out" --envs="$envs")
if [[ -x "$envs/torch/bin/python" && ! -e "$out/tuned.json" ]]; then
  "$PYTHON" -m launch.bench.tune "${common[@]}"  # for BERT4Rec; SASRec has the same blocks
fi
exec "$PYTHON" -m launch.bench.compare "${common[@]}" --tasks="$tasks" --rounds="${ROUNDS:-5}"
