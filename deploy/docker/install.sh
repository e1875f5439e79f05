#!/bin/sh
# Installs distributions into /opt/foveate, in the versions that were tested
# together, and writes their bill of materials beside them (CycloneDX).
#
#   install.sh proto clients 'serve[cpu]'
#
# TORCH_BACKEND, where it is set, is uv's: cpu takes torch without CUDA.
set -eu

python3 -m venv --without-pip /opt/foveate
wheels=
for distribution; do
    extras=$(expr "$distribution" : '[a-z]*\(\[.*\]\)$' || true)
    name=${distribution%"$extras"}
    [ "$name" = clients ] && name=client
    wheels="$wheels $(echo /wheels/foveate_"$name"-*.whl)$extras"
done
# The names hold no spaces.
# shellcheck disable=SC2086
/tools/bin/uv pip install --python /opt/foveate/bin/python --constraint /constraints.txt \
    ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} $wheels
/tools/bin/cyclonedx-py environment --output-reproducible \
    --output-file /opt/foveate/sbom.cdx.json /opt/foveate/bin/python
