#!/usr/bin/env bash
# Compile the C++ and Go programs of docs/client/other-languages.md, and run
# them against a server that is up:
#
#   tests/conformance/compiled.sh ADDRESS PICTURE
#
# It takes about a minute and needs Debian's packages, so it is run by hand:
#
#   g++ pkg-config protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libgrpc++-dev
#   golang-go protoc-gen-go protoc-gen-go-grpc golang-google-protobuf-dev
#   golang-google-genproto-dev golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev
#
# The last one and golang-github-golang-protobuf-1-3-dev, which grpc depends on, take
# each other's place: unpack its .deb with `dpkg -x` and name the folder's
# usr/share/gocode in GO_FIRST.
set -euo pipefail
address=$1
picture=$(realpath "$2")
cd "$(dirname "$0")/../.."
root=$PWD
google=$("${VENV:-.venv}/bin/python" -c \
    'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
services=(foveate/v1/explanation.proto foveate/v1/model.proto foveate/v1/classifier_service.proto)

program() { # LANGUAGE: print the page's program
    awk -v fence="\`\`\`$1" '$0 == fence { on = 1; next } /^```/ { on = 0 } on' \
        "$root/docs/client/other-languages.md"
}

echo "C++: $(g++ -dumpfullversion), gRPC $(pkg-config --modversion grpc++)"
mkdir "$work/cpp" && cd "$work/cpp"
program cpp >classify.cc
protoc -I "$root/proto" -I "$google" --cpp_out=. --grpc_out=. \
    --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" \
    "${services[@]}" google/rpc/status.proto google/rpc/error_details.proto
# shellcheck disable=SC2046 # flags are words
g++ -std=c++17 -Wall -Wextra -I. classify.cc foveate/v1/*.pb.cc google/rpc/*.pb.cc \
    $(pkg-config --cflags --libs grpc++ protobuf) -o classify
./classify "$address" "$picture"

echo "Go: $(go version)"
mkdir -p "$work/go/src/classify" && cd "$work/go/src/classify"
program go >main.go
packages=()
for file in "${services[@]}"; do
    packages+=("--go_opt=M$file=classify/foveate/v1" "--go-grpc_opt=M$file=classify/foveate/v1")
done
protoc -I "$root/proto" --go_out=.. --go-grpc_out=.. "${packages[@]}" "${services[@]}"
GO111MODULE=off GOPATH=$work/go:${GO_FIRST:+$GO_FIRST:}/usr/share/gocode go build -o ../../classify .
"$work/go/classify" "$address" "$picture"
