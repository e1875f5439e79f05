#!/usr/bin/env bash
# The main job, from real data to a heatmap over gRPC.
#
#   scripts/demo.sh [OUT]      OUT defaults to demo-output
#
# PAGE=HOST:PORT shows the page there at the end, until Ctrl-C.
#
# A second run keeps the checkpoint and the bundles of the first; `make clean`
# removes them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${VENV:-.venv}")/bin
out=${1:-demo-output}
repository=$out/repository
mkdir -p "$out"

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
foveate() { "$bin/foveate" "$@"; }

step "1. Train four convolutions on MNIST"
if [ -f "$out/checkpoint/checkpoint.json" ]; then
    echo "kept: $out/checkpoint"
else
    foveate train mnist --model foveate:convnet4 --epochs 1 --out "$out/checkpoint"
fi

step "2. Export it, and EfficientNet-Lite0 with its ImageNet weights"
export_once() { # SOURCE NAME [OPTION...]
    if [ -f "$repository/$2/1/manifest.json" ]; then
        echo "kept: $repository/$2/1"
    else
        foveate export "$1" --repository "$repository" --name "$2" "${@:3}"
    fi
}
export_once "$out/checkpoint" mnist --layers layer1,layer2,layer3,layer4
export_once package:efficientnet_lite0 efficientnet_lite0

step "3. Serve both"
"$bin/python" scripts/demo_pictures.py "$out/pictures"
rm -f "$out/server.txt" # or the address of the last run would be taken
# Not by the function: a shell of its own would be stopped, and the server left running.
"$bin/foveate" serve --repository "$repository" --address 127.0.0.1:0 >"$out/server.txt" 2>"$out/server.log" &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
until [ -s "$out/server.txt" ]; do
    kill -0 $server || { cat "$out/server.log" >&2; exit 1; }
    sleep 0.1
done
cat "$out/server.txt"
address=$(awk '{print $NF}' "$out/server.txt")

step "4. A digit: the five best classes, what spoke for them, and what the layers saw"
foveate classify "$out/pictures/digit.png" --address "$address" --model mnist \
    --cam --cam-top 5 --feature-maps layer1 --feature-maps layer4 --out "$out/digit"

step "5. A photograph"
foveate classify "$out/pictures/coffee.jpg" --address "$address" --model efficientnet_lite0 \
    --cam --cam-top 5 --feature-maps blocks.1 --out "$out/photograph"

step "The pictures are in $out/digit and $out/photograph"
if [ -n "${PAGE:-}" ]; then
    step "6. The page; Ctrl-C ends it"
    foveate web --address "$address" --listen "$PAGE"
else
    echo "To look at pictures of your own, type"
    echo "    make demo PAGE=127.0.0.1:7860"
    echo "and open http://127.0.0.1:7860/"
fi
