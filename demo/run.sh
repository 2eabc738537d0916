#!/usr/bin/env bash
# Quantize, validate and evaluate the bundled miniature on this machine's CPU.  Needs Python 3.11 or newer.
#   bash demo/run.sh [VIRTUAL_ENVIRONMENT]      default: .venv; made when it is not there
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv}"
if [ ! -x "$venv/bin/w4afp8" ]; then
  echo "installing into $venv"
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
  "$venv/bin/pip" install --quiet --disable-pip-version-check .
fi
out=demo/output/tiny-dsv3-W4AFP8
rm -rf "$out"
mkdir -p demo/output
w4afp8="$venv/bin/w4afp8"

echo "== w4afp8 quantize --model demo/tiny-dsv3 -o $out"
"$w4afp8" quantize --model demo/tiny-dsv3 -o "$out"
echo; echo "== w4afp8 eval $out --against demo/tiny-dsv3 --data demo/evaluation.jsonl"
"$w4afp8" eval "$out" --against demo/tiny-dsv3 --data demo/evaluation.jsonl --sequences 16
echo; echo "== w4afp8 validate $out --against demo/tiny-dsv3"
"$w4afp8" validate "$out" --against demo/tiny-dsv3
