#!/usr/bin/env bash
# Generate the Python stubs that lie beside the .proto files.
#
#   scripts/generate_stubs.sh [TARGET]     TARGET defaults to proto/
#
# The compiler is older than the libraries on purpose: generated code runs on
# its own protobuf major version and the next, and on its own grpcio and later,
# so the oldest versions a client may have decide.
set -euo pipefail

cd "$(dirname "$0")/.."
target=${1:-proto}
venv=${VENV:-.venv}
codegen=$venv/codegen

if [ ! -x "$codegen/bin/protoc-gen-mypy_grpc" ]; then
    "$venv/bin/uv" venv --quiet --clear "$codegen"
    "$venv/bin/uv" pip install --quiet --python "$codegen/bin/python" \
        grpcio-tools==1.74.0 protobuf==6.33.6 mypy-protobuf==5.1.0
fi

mkdir -p "$target"
cd proto
PATH=$(cd .. && cd "$codegen/bin" && pwd):$PATH python -m grpc_tools.protoc -I . \
    --python_out="$(cd .. && cd "$target" && pwd)" \
    --grpc_python_out="$(cd .. && cd "$target" && pwd)" \
    --mypy_out=quiet:"$(cd .. && cd "$target" && pwd)" \
    --mypy_grpc_out=quiet:"$(cd .. && cd "$target" && pwd)" \
    foveate/v1/*.proto foveate/inference/*.proto
