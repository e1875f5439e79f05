#!/usr/bin/env bash
# Generate the Python stubs that lie beside the .proto files.
#
#   scripts/generate_stubs.sh [TARGET]     TARGET defaults to proto
#
# The compiler is older than the libraries on purpose: generated code runs on
# its own major version of protobuf and the next, and on its own grpcio and
# later, so the oldest versions that a client may have decide. It lives in an
# environment of its own, inside VENV (default .venv).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${VENV:-.venv}")
mkdir -p "${1:-proto}"
target=$(realpath "${1:-proto}")
codegen=$venv/codegen

if [ ! -x "$codegen/bin/protoc-gen-mypy_grpc" ]; then
    "$venv/bin/uv" venv --quiet --clear "$codegen"
    "$venv/bin/uv" pip install --quiet --python "$codegen/bin/python" \
        grpcio-tools==1.74.0 protobuf==6.33.6 mypy-protobuf==5.1.0
fi

cd proto
export PATH=$codegen/bin:$PATH
python -m grpc_tools.protoc -I . --python_out="$target" --mypy_out=quiet:"$target" \
    foveate/v1/*.proto foveate/inference/*.proto
python -m grpc_tools.protoc -I . --grpc_python_out="$target" --mypy_grpc_out=quiet:"$target" \
    foveate/v1/*_service.proto foveate/inference/*.proto
