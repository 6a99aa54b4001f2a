#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All checks before a commit, in one command: ./check.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")"

ruff format --check
ruff check
mypy
if command -v shellcheck >/dev/null; then
  shellcheck check.sh .ci/run launch/*.sh
else
  echo "shellcheck is not installed: shell scripts not checked" >&2
fi
python -m pytest "$@"
