#!/usr/bin/env bash
# Trains on every host of a Cloud TPU VM pod, from the checkout that stands on each of them.
#
#   NAME=my-tpu ZONE=us-east5-b launch/tpu_vm.sh --config configs/digits.py --workdir gs://bucket/run
#
# Status 75, a preemption, is answered by starting again; --workdir must be storage that all share.
set -euo pipefail

: "${NAME:?the name of the TPU VM}" "${ZONE:?its zone}"
directory=${DIRECTORY:-mobilevitv2-jax}  # the checkout on the hosts, below the home directory

arguments=${*:+$(printf ' %q' "$@")}
run="cd $directory && python3 -u train.py --distributed$arguments"

while true; do
  status=0
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$run" || status=$?
  [[ $status -eq 75 ]] || exit "$status"
  sleep 60
done
