#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Several processes on one machine that train together, as the hosts of a TPU pod do.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/local.sh --processes N [--devices-per-process D] [--logs DIR] -- FLAGS OF metaicl.main

Starts N processes of `python -m metaicl.main` that form one job over the loopback interface. Process 0 writes
to this terminal, the others to files. Every global batch is the one that a single process would train on.

  --processes N            number of processes
  --devices-per-process D  CPU devices of each process (default 1); train.batch must be a multiple of N x D
  --logs DIR               folder for the output of processes 1 to N-1 (default: a new temporary folder)
  --help                   this text

The exit status is that of the first process that fails; the others are then stopped, as they are on Ctrl-C.
Environment: PYTHON (default python), JAX_PLATFORMS (default cpu).

  launch/local.sh --processes 2 -- --config=configs/loo.py:quick --workdir=runs/two
TEXT
}

die() {
  echo "launch/local.sh: $*" >&2
  exit 2
}

processes="" devices=1 logs=""
while (($#)); do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --processes | --devices-per-process | --logs)
      (($# > 1)) || die "$1 needs a value; see --help"
      case "$1" in
        --processes) processes=$2 ;;
        --devices-per-process) devices=$2 ;;
        --logs) logs=$2 ;;
      esac
      shift 2
      ;;
    --) shift && break ;;
    *) die "unknown option '$1'; flags of metaicl.main go behind --. See --help" ;;
  esac
done
[[ -n "$processes" ]] || die "--processes is missing; see --help"
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || die "--processes is '$processes', not a number of at least 1"
[[ "$devices" =~ ^[1-9][0-9]*$ ]] || die "--devices-per-process is '$devices', not a number of at least 1"
for flag in "$@"; do
  case "$flag" in
    --coordinator* | --process=* | --process | --processes* | --distributed*)
      die "'$flag' is set by this script" ;;
  esac
done

python=${PYTHON:-python}
command -v "$python" >/dev/null || die "there is no '$python'; set PYTHON"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export JAX_NUM_CPU_DEVICES=$devices
if [[ -z "$logs" ]]; then
  logs=$(mktemp -d "${TMPDIR:-/tmp}/metaicl-processes.XXXXXX")
fi
mkdir -p "$logs"
((processes == 1)) || echo "Output of processes 1 to $((processes - 1)): $logs/process-*.log" >&2

set -m # each process leads its own group, so that its children are stopped with it
pids=()

running() {
  kill -0 "$1" 2>/dev/null
}

# Sends a signal to all processes, waits up to five seconds, then kills what is left (JAX catches SIGTERM).
stop_all() {
  local pid tries
  for pid in "${pids[@]}"; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  done
  for pid in "${pids[@]}"; do
    for ((tries = 0; tries < 50; tries++)); do
      running "$pid" || break
      sleep 0.1
    done
    kill -s KILL -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}

trap 'trap "" INT TERM; stop_all INT; exit 130' INT
trap 'trap "" INT TERM; stop_all TERM; exit 143' TERM

for ((i = 0; i < processes; i++)); do
  command=("$python" -m metaicl.main "$@" "--coordinator=127.0.0.1:$port" "--process=$i" "--processes=$processes")
  if ((i == 0)); then
    "${command[@]}" </dev/null &
  else
    "${command[@]}" </dev/null >"$logs/process-$i.log" 2>&1 &
  fi
  pids+=($!)
done

left=$processes
done_=()
while ((left)); do
  sleep 0.2
  for i in "${!pids[@]}"; do
    if [[ -n "${done_[i]:-}" ]] || running "${pids[i]}"; then
      continue
    fi
    done_[i]=1 left=$((left - 1)) status=0
    wait "${pids[i]}" || status=$?
    if ((status)); then
      echo "Process $i failed with status $status; the others are stopped." >&2
      ((i == 0)) || tail -n 20 "$logs/process-$i.log" >&2
      trap '' INT TERM
      stop_all TERM
      exit "$status"
    fi
  done
done
