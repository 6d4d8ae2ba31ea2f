#!/usr/bin/env bash
# A training run on a managed instance group of GPU VMs; Spot VMs that are taken away come back
# under their names and resume.
#
#   NAME=run1 ZONE=us-central1-a NFS=10.0.0.2:/share HOSTS=2 MACHINE=a2-highgpu-1g \
#     bash launch/gce_mig.sh python -m recjax.train --config=configs/NAME.py \
#       --workdir=/mnt/share/W --config.data_dir=/mnt/share/D
#
# NFS is a share (such as Filestore) that holds this checkout in CODE (default /mnt/share/recjax),
# the data and the workdir; every VM mounts it at /mnt/share and writes /mnt/share/NAME-HOST.log.
# One process a host uses all its GPUs. A VM whose command is complete (or mistaken: exit code 2)
# leaves the group. Further variables: PROJECT, SPOT=0 for VMs that are not taken away,
# IMAGE_FAMILY and IMAGE_PROJECT for an image with NVIDIA's driver, Python 3.11 or newer and
# gcloud.
#   remove:  gcloud compute instance-groups managed delete run1 --zone=ZONE
#            gcloud compute instance-templates delete run1
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/environment.sh
. "$here/environment.sh"
if [[ -z "${NAME:-}" || -z "${ZONE:-}" || -z "${NFS:-}" || $# -eq 0 ]]; then
  recjax_die "usage: NAME=.. ZONE=.. NFS=IP:/SHARE [HOSTS=N] bash launch/gce_mig.sh COMMAND..."
fi
command -v gcloud >/dev/null || recjax_die "no command gcloud; install the Google Cloud CLI"

hosts="${HOSTS:-1}"
group=(--zone="$ZONE" ${PROJECT:+"--project=$PROJECT"})
startup="$(mktemp)"
trap 'rm -f "$startup"' EXIT
# Runs at every boot, so a VM that comes back resumes. The instances are called NAME-0, NAME-1,
# ...: the name gives the rank, and the zone's DNS knows NAME-0, the coordinator.
cat >"$startup" <<END
#!/usr/bin/env bash
set -euo pipefail
export HOME=/root JAX_COORDINATOR_ADDRESS=$NAME-0:8476 JAX_NUM_PROCESSES=$hosts
host="\$(hostname -s)"
export JAX_PROCESS_ID="\${host##*-}" RECJAX_JAX='${RECJAX_JAX-jax[cuda13]}'
command -v mount.nfs >/dev/null || { apt-get update && apt-get install -y nfs-common python3-venv; }
mkdir -p /mnt/share
mountpoint -q /mnt/share || mount -t nfs $(printf "%q" "$NFS") /mnt/share
exec >>"/mnt/share/\$host.log" 2>&1
cd $(printf "%q" "${CODE:-/mnt/share/recjax}")
. launch/environment.sh
recjax_environment
export PATH="\$(dirname "\$PYTHON"):\$PATH"
code=0
recjax_forward bash launch/retry.sh $(printf "%q " "$@") || code=\$?
echo "recjax: exit code \$code"
# Powering off would not do: the group starts again what stops.
if [ "\$code" -eq 0 ] || [ "\$code" -eq 2 ]; then
  gcloud compute instance-groups managed delete-instances $NAME --instances="\$host" ${group[*]}
fi
END

spot=(--provisioning-model=SPOT --instance-termination-action=STOP)
if [[ "${SPOT:-1}" == 0 ]]; then spot=(--provisioning-model=STANDARD); fi
gcloud compute instance-templates create "$NAME" ${PROJECT:+"--project=$PROJECT"} "${spot[@]}" \
  --machine-type="${MACHINE:-a2-highgpu-1g}" --maintenance-policy=TERMINATE \
  --image-family="${IMAGE_FAMILY:-ubuntu-accelerator-2404-amd64-with-nvidia-570}" \
  --image-project="${IMAGE_PROJECT:-ubuntu-os-accelerator-images}" --boot-disk-size=200GB \
  --scopes=cloud-platform --metadata-from-file=startup-script="$startup"
gcloud compute instance-groups managed create "$NAME" "${group[@]}" --template="$NAME" --size=0
for ((host = 0; host < hosts; host++)); do
  gcloud compute instance-groups managed create-instance "$NAME" "${group[@]}" \
    --instance="$NAME-$host"
done
