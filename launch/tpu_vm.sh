#!/usr/bin/env bash
# A command on every host of a TPU VM, started again whenever it dies, until it succeeds.
#
#   TPU=NAME ZONE=us-central2-b bash launch/tpu_vm.sh \
#     python -m recjax.train --config=configs/NAME.py --workdir=/mnt/W --config.data_dir=/mnt/D
#   TPU=NAME ZONE=us-central2-b bash launch/tpu_vm.sh --stop
#
# Copies this checkout to the hosts' ~/recjax-job, makes an environment with jax[tpu] there and
# starts the command, whose `python` is that environment's, detached: a lost connection stops
# nothing. Then it shows the log; the same line again goes on showing it, or starts the command
# anew if it has ended. With several hosts, W and D lie on storage that all of them mount.
# PROJECT=... names another project than gcloud's own default. Exit code 0 only if the command
# succeeded on every host.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/environment.sh
. "$here/environment.sh"
if [[ -z "${TPU:-}" || -z "${ZONE:-}" || $# -eq 0 ]]; then
  recjax_die "usage: TPU=NAME ZONE=ZONE bash launch/tpu_vm.sh COMMAND..."
fi
command -v gcloud >/dev/null || recjax_die "no command gcloud; install the Google Cloud CLI"

place=(--zone="$ZONE" --worker=all ${PROJECT:+"--project=$PROJECT"})
on_hosts() { gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --command="$1"; }

# shellcheck disable=SC2016  # expanded on the hosts
running='kill -0 "$(cat recjax.pid 2>/dev/null)" 2>/dev/null'
if [[ "$1" == --stop ]]; then
  on_hosts "if $running; then kill -TERM \"\$(cat recjax.pid)\"; fi"
  exit
fi

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
tar -C "$here/.." -czf "$folder/recjax.tgz" requirements.txt recjax configs launch
gcloud compute tpus tpu-vm scp "$folder/recjax.tgz" "$TPU:recjax.tgz" "${place[@]}"

# retry.sh on each host: when one host dies the others lose it, fail too, and all meet again.
job="cd recjax-job
. launch/environment.sh
# Images for TPUs may carry an older Python as python3.
(recjax_find_python) >/dev/null 2>&1 ||
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y python3.11 python3.11-venv
export RECJAX_JAX='jax[tpu]' RECJAX_DISTRIBUTED=1
recjax_environment
export PATH=\"\$(dirname \"\$PYTHON\"):\$PATH\"
code=0
recjax_forward bash launch/retry.sh $(printf "%q " "$@") || code=\$?
echo \"recjax: exit code \$code\""
# setsid: a session of its own, which no hang-up reaches.
on_hosts "if ! $running; then
  rm -rf recjax-job && mkdir recjax-job && tar -C recjax-job -xzf recjax.tgz || exit 1
  setsid nohup bash -euc $(printf "%q" "$job") >recjax.log 2>&1 </dev/null &
  echo \$! >recjax.pid
fi
tail -n +1 --pid=\"\$(cat recjax.pid)\" -f recjax.log
tail -n 1 recjax.log | grep -qx 'recjax: exit code 0'"
