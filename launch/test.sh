#!/usr/bin/env bash
# The whole test suite in an environment of its own.
#
#   bash launch/test.sh [pytest arguments]      such as: -k transfer, --slow, tests/test_spec.py
#
# Programs are compiled with few optimizations, since compiling is what takes the time; --optimized
# compiles them as users do.
#
# Paths are relative to the repository's root; without one all of tests/ runs. A process a core, four
# at most, share the files; -n 0 runs them in one (for --pdb).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
. launch/environment.sh
recjax_environment

parallel=(-n auto --maxprocesses 4 --dist loadfile)
for argument in "$@"; do
  # A path, or a node id such as tests/test_spec.py::test_name.
  if [[ -e "${argument%%::*}" ]]; then exec "$PYTHON" -m pytest "${parallel[@]}" "$@"; fi
done
exec "$PYTHON" -m pytest "${parallel[@]}" "$@" tests
