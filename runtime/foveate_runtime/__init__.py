"""A bundle in one process: manifest, picture pipeline, engines, heatmaps, evaluation."""

import os

# Read once, when ONNX Runtime is loaded. It otherwise reports to its makers over the network,
# keeps an identifier of the machine in the user's cache, and holds up the end of the process
# for seconds where no name server answers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
