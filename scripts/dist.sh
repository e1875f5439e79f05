#!/usr/bin/env bash
# Builds the wheels and source distributions of all packages into the folder
# given, checks what they say of themselves, and installs the wheels into an
# environment of its own for each Python given, where they export, verify and
# classify. Usage: dist.sh FOLDER PYTHON...
set -euo pipefail
out=$1
shift
bin=$(realpath "${VENV:-.venv}")/bin

mkdir -p "$out"
rm -f "$out"/foveate*.whl "$out"/foveate*.tar.gz
for package in proto clients web runtime serve bench export train umbrella; do
    "$bin/uv" build --quiet --out-dir "$out" "$package"
done
"$bin/uv" pip install --quiet --python "$bin/python" --constraint constraints.txt --group release
"$bin/twine" check --strict "$out"/foveate*

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
missing=()
for python in "$@"; do
    if ! "$python" --version >/dev/null 2>&1; then
        missing+=("$python")
        continue
    fi
    environment=$work/$python
    "$bin/uv" venv --quiet --python "$python" "$environment"
    "$bin/uv" pip install --quiet --python "$environment/bin/python" --constraint constraints.txt \
        --find-links "$out" "foveate[all]"
    repository=$work/repository-$python
    "$environment/bin/foveate" export package:efficientnet_lite0 --repository "$repository" --name lite0
    "$environment/bin/foveate" verify "$repository/lite0/1"
    "$environment/bin/foveate" classify docs/images/coffee.jpg --repository "$repository" --cam --out "$work/maps"
    echo "$python: exported, verified and classified from wheels"
done
ls -l "$out"
if [ ${#missing[@]} -gt 0 ]; then
    echo "not here, so that the wheels were not tried on them: ${missing[*]}; PYTHONS= names others" >&2
    exit 1
fi
