#!/usr/bin/env bash
# Lint, types and every test that needs no GPU.  Needs Python 3.11 or newer.
#   bash tests/run.sh [VIRTUAL_ENVIRONMENT]     default: .venv; made when it is not there
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv}"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$venv/bin/pip" install --quiet --disable-pip-version-check -e ".[test,lint,oracles]"

echo "== ruff";   "$venv/bin/ruff" check .; "$venv/bin/ruff" format --check .
echo "== mypy";   "$venv/bin/mypy"
echo "== pytest"; "$venv/bin/pytest"
