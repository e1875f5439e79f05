"""A bundle in one process: manifest, picture pipeline, engines, heatmaps, evaluation."""

import os
import sys
from typing import Any, cast

# Read once, when ONNX Runtime is loaded. It otherwise reports to its makers over the network,
# keeps an identifier of the machine in the user's cache, and holds up the end of the process
# for seconds where no name server answers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO imports this package where it can, and does without it where it cannot. It keeps an
# identifier in the user's home, and forks a process from a thread to report over the network:
# where another thread holds a lock at that moment, the process does not end. No variable and
# no setting turns it off.
cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
