"""The gRPC server of Foveate.

A request goes from `wire` (HTTP/2) and `rpc` (services and messages) to `engine`,
which has its picture decoded by `imaging`, takes a model from `repository` and
waits for a batch of `batching`, which a runner of `backends` runs on the graph of
a `bundle`. `process` is one server of these, and `workers` are several.
"""

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
