# shellcheck shell=bash
# The virtual environment that all scripts here share, and how they pass signals on.
#
#   . launch/environment.sh      defines the two functions below and does nothing
#   recjax_environment           makes or reuses the environment; sets PYTHON to its interpreter
#   recjax_forward COMMAND...    runs COMMAND, hands it SIGTERM and SIGINT, returns its exit code
#
# Environment variables:
#   RECJAX_VENV    where (default ${XDG_CACHE_HOME:-~/.cache}/recjax/venv)
#   RECJAX_PYTHON  made with which interpreter (default: the first of python3, python3.13,
#                  python3.12, python3.11 that is 3.11 or newer)
#   RECJAX_JAX     which jax (default: for CPU), such as "jax[cuda13]" or "jax[tpu]"

recjax_die() {
  echo "error: $*" >&2
  exit 2
}

# Prints an interpreter that can make the environment, or says in one line why there is none.
recjax_find_python() {
  local candidate reason="" candidates=(python3 python3.13 python3.12 python3.11)
  if [[ -n "${RECJAX_PYTHON:-}" ]]; then candidates=("$RECJAX_PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    "$candidate" -c "" 2>/dev/null || continue  # absent, or a shim for a version that is absent
    if ! "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))"; then
      reason="${reason:-$candidate is $("$candidate" --version 2>&1), recjax needs 3.11 or newer}"
    elif ! "$candidate" -c "import venv, ensurepip" 2>/dev/null; then
      reason="$candidate has no venv module (on Debian and Ubuntu: apt-get install python3-venv)"
    else
      echo "$candidate"
      return
    fi
  done
  if [[ -n "${RECJAX_PYTHON:-}" ]]; then
    recjax_die "${reason:-RECJAX_PYTHON=$RECJAX_PYTHON does not run}"
  fi
  recjax_die "${reason:-no Python found; install Python 3.11 or newer (or set RECJAX_PYTHON)}"
}

recjax_environment() {
  local root venv python stamp wanted
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  venv="${RECJAX_VENV:-${XDG_CACHE_HOME:-${HOME:?set HOME or RECJAX_VENV}/.cache}/recjax/venv}"
  mkdir -p "$venv" || recjax_die "cannot make the folder $venv; set RECJAX_VENV to another one"
  venv="$(cd "$venv" && pwd)"
  stamp="$venv/recjax.stamp"
  PYTHON="$venv/bin/python"
  python="$(recjax_find_python)" || exit 2
  wanted="$("$python" -c '
import hashlib, sys
text = open(sys.argv[1]).read() + sys.argv[2] + sys.version + sys.base_prefix
print(hashlib.sha256(text.encode()).hexdigest())' "$root/requirements.txt" "${RECJAX_JAX:-}")"

  # Two commands started together must not build one environment at once.
  exec 9>"$venv.lock"
  if command -v flock >/dev/null; then flock 9; fi
  # The stamp is written last, so an environment without its final content is half-made or outdated.
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]] || ! "$PYTHON" -c "" 2>/dev/null; then
    if [[ ! -e "$stamp" && -n "$(ls -A "$venv")" ]]; then
      recjax_die "$venv holds other things than recjax's environment; set RECJAX_VENV elsewhere"
    fi
    echo "making the virtual environment $venv (a few minutes, once)"
    echo incomplete >"$stamp"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name recjax.stamp -exec rm -rf {} +
    "$python" -m venv "$venv" || recjax_die "$python -m venv failed; its message is above"
    if [[ -n "${RECJAX_JAX:-}" ]]; then recjax_pip "$RECJAX_JAX"; fi
    recjax_pip -r "$root/requirements.txt"
    echo "$wanted" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    echo "made it in ${SECONDS}s"
  fi
  exec 9>&-
}

recjax_pip() {
  "$PYTHON" -m pip --disable-pip-version-check install "$@" \
    || { echo "error: pip install $* failed, see above; the same command tries again" >&2; exit 1; }
}

# Sets RECJAX_STOPPED=1 if a signal came. Bash by itself would die at once and orphan the child.
recjax_forward() {
  local child="" code interrupted
  RECJAX_STOPPED="${RECJAX_STOPPED:-}"
  # A child in the background ignores SIGINT, hence TERM for both: recjax saves and exits with 75.
  trap 'RECJAX_STOPPED=1 interrupted=1; [[ -z "$child" ]] || kill "$child" 2>/dev/null' TERM INT
  "$@" &
  child=$!
  while :; do
    interrupted=""
    wait "$child" && code=0 || code=$?
    if [[ -z "$interrupted" ]]; then break; fi  # else it was the wait that ended, not the child
  done
  trap - TERM INT
  return "$code"
}
