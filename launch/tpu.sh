#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A TPU VM from creation to results.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu.sh ACTION [options] [-- FLAGS OF metaicl.main]

  create   makes the TPU VM, unless it is there
  setup    copies this repository, as last committed, to all hosts and installs it with jax[tpu]
  run      runs python -m metaicl.main --distributed FLAGS on all hosts at once; again: goes on where it stopped
  fetch    brings report, figures, records and weights here (checkpoints stay)
  delete   deletes the TPU VM, if it is there
  all      all of these in order; after an error the TPU VM is kept, and this says so

Options, and the environment variables that set their defaults:

  --name NAME        TPU_NAME     name of the TPU VM                          (metaicl)
  --zone ZONE        TPU_ZONE     where it is                                 (us-central1-a)
  --type TYPE        TPU_TYPE     accelerator type                            (v5litepod-4)
  --version VERSION  TPU_VERSION  runtime version, which goes with the type   (v2-alpha-tpuv5-lite)
  --project PROJECT  TPU_PROJECT  Google Cloud project                        (that of gcloud's configuration)
  --spot             TPU_SPOT=1   cheaper, and may be taken away at any time  (no)
  --out DIR                       where fetch puts the results                (runs/NAME)
  --dry-run                       print every command, run none
  --help                          this text

What a pod of several hosts needs:

  - train.batch must be a multiple of the number of chips: -- --config.train.batch=32
  - Host 0 alone writes outputs and checkpoints, to ~/metaicl-runs on its own disk, and sends a restored state to
    the others: no shared folder is needed to train or to resume. The disk goes with the TPU VM; to keep
    checkpoints when a spot TPU VM is taken away, give a folder that outlives it, such as a mounted NFS share:
    -- --workdir=/mnt/share/runs, and fetch from there by hand. A gs:// address is no folder: it does not work.
  - Every host reads data itself. The embedded album is drawn on each; an album of files or the weights of a
    backbone must be under the same path on all hosts (a share, a mounted bucket, or copied there after setup).

  launch/tpu.sh all --spot -- --config=configs/loo.py
TEXT
}

die() {
  echo "launch/tpu.sh: $*" >&2
  exit 2
}

action="" dry_run="" out=""
name=${TPU_NAME:-metaicl}
zone=${TPU_ZONE:-us-central1-a}
type=${TPU_TYPE:-v5litepod-4}
version=${TPU_VERSION:-v2-alpha-tpuv5-lite}
project=${TPU_PROJECT:-}
spot=${TPU_SPOT:-}
while (($#)); do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift ;;
    --spot) spot=1 && shift ;;
    --name | --zone | --type | --version | --project | --out)
      (($# > 1)) || die "$1 needs a value; see --help"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --) shift && break ;;
    -*) die "unknown option '$1'; flags of metaicl.main go behind --. See --help" ;;
    create | setup | run | fetch | delete | all)
      [[ -z "$action" ]] || die "two actions: '$action' and '$1'; see --help"
      action=$1 && shift
      ;;
    *) die "unknown action '$1'; use create, setup, run, fetch, delete or all. See --help" ;;
  esac
done
[[ -n "$action" ]] || die "the action is missing: create, setup, run, fetch, delete or all. See --help"
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "'$name' is no name of a TPU VM (small letters, digits, -)"
out=${out:-runs/$name}
if (($#)) && [[ "$action" != run && "$action" != all ]]; then
  die "flags of metaicl.main are for run and all, not for $action"
fi
if [[ "$action" == run || "$action" == all ]]; then
  [[ " $*" == *" --config"[=\ ]* ]] || die "$action needs the config: -- --config=configs/loo.py"
fi
if [[ -z "$dry_run" ]]; then
  command -v gcloud >/dev/null || die "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"
fi
cd "$(dirname "$0")/.."

where=("--zone=$zone")
[[ -z "$project" ]] || where+=("--project=$project")
tpu=(gcloud compute tpus tpu-vm)
archive=$(mktemp -u "${TMPDIR:-/tmp}/metaicl.XXXXXX").tar.gz

# The words with quotes where a shell needs them.
quoted() {
  local word separator=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,+-]+$ ]] || word=${word@Q}
    printf '%s%s' "$separator" "$word"
    separator=" "
  done
}

# Prints a command so that it can be pasted into a shell, and runs it unless this is a dry run.
do_it() {
  quoted "$@" && echo
  [[ -n "$dry_run" ]] || "$@"
}

# The state of the TPU VM (READY, PREEMPTED, ...), nothing where there is none, and $1 in a dry run.
state() {
  local command=("${tpu[@]}" list "${where[@]}" '--format=value(name.basename(),state)')
  if [[ -n "$dry_run" ]]; then
    (quoted "${command[@]}" && echo) >&2
    echo "$1"
  else
    "${command[@]}" | awk -v name="$name" '$1 == name { print $2 }'
  fi
}

on_hosts() {
  do_it "${tpu[@]}" ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

do_create() {
  local found extra=()
  found=$(state "")
  case "$found" in
    "")
      [[ -z "$spot" ]] || extra=(--spot)
      extra+=("--accelerator-type=$type" "--version=$version")
      do_it "${tpu[@]}" create "$name" "${where[@]}" "${extra[@]}"
      ;;
    READY | CREATING) echo "TPU VM $name is there already ($found)." ;;
    *) die "TPU VM $name is there but $found: delete it first with launch/tpu.sh delete --name $name" ;;
  esac
}

do_setup() {
  if [[ -z "$dry_run" && -n "$(git status --porcelain)" ]]; then
    echo "What is not committed stays behind:" >&2
    git status --short >&2
  fi
  do_it git archive --format=tar.gz "--output=$archive" HEAD
  do_it "${tpu[@]}" scp "$archive" "$name:metaicl.tar.gz" "${where[@]}" --worker=all
  do_it rm -f "$archive"
  # The images of the TPU runtime have an older Python than is needed; uv brings one.
  on_hosts all "set -e; rm -rf ~/metaicl; mkdir ~/metaicl; cd ~/metaicl; tar -xzf ~/metaicl.tar.gz;\
 python3 -m pip install --quiet --user uv; [ -d ~/metaicl-env ] || python3 -m uv venv --python 3.11 ~/metaicl-env;\
 python3 -m uv pip install --python ~/metaicl-env/bin/python -c constraints.txt -e . 'jax[tpu]'"
}

do_run() {
  local program="python -m metaicl.main --distributed --workdir=\$HOME/metaicl-runs"
  # Flags given later win, so that a --workdir among them replaces this one.
  on_hosts all "cd ~/metaicl && ~/metaicl-env/bin/$program $(quoted "$@")"
}

do_fetch() {
  on_hosts 0 "tar -czf ~/metaicl-results.tar.gz -C ~/metaicl-runs --exclude=checkpoints --exclude=events ."
  do_it mkdir -p "$out"
  do_it "${tpu[@]}" scp "$name:metaicl-results.tar.gz" "$archive" "${where[@]}" --worker=0
  do_it tar -xzf "$archive" -C "$out"
  do_it rm -f "$archive"
  [[ -n "$dry_run" ]] || echo "Results: $out/report.html"
}

do_delete() {
  local found
  found=$(state READY)
  if [[ -n "$found" ]]; then
    do_it "${tpu[@]}" delete "$name" "${where[@]}" --quiet
  else
    echo "There is no TPU VM $name in $zone."
  fi
}

if [[ "$action" != all ]]; then
  "do_$action" "$@"
  exit
fi
do_create
delete="launch/tpu.sh delete --name $name --zone $zone"
trap 'echo "Stopped. TPU VM $name is kept, and is paid for until you delete it: $delete" >&2' EXIT
do_setup
do_run "$@"
do_fetch
do_delete
trap - EXIT
