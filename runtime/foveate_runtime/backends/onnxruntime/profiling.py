"""Reads the file that ONNX Runtime writes of a profiled session."""

import json
from pathlib import Path

from foveate_runtime.backends.base import OperatorTime

_KERNEL = "_kernel_time"
"""What ends the names of the events of nodes."""


def read(path: Path, *, warm_up: int) -> list[OperatorTime]:
    """Return what each node took after the first `warm_up` runs, in the order of the graph.

    The file is a list of events in the format of Chrome's traces: their times
    are in microseconds.
    """
    events = json.loads(path.read_bytes())
    runs = [event["ts"] for event in events if event["name"] == "model_run"]
    kernels = [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith(_KERNEL)
        and event["ts"] >= runs[warm_up]
    ]
    durations: dict[tuple[int, str, str], list[int]] = {}
    for event in kernels:
        what = event["args"]
        name = event["name"].removesuffix(_KERNEL)
        key = (int(what["node_index"]), name, what["op_name"])
        durations.setdefault(key, []).append(event["dur"])
    return [
        OperatorTime(name=name, operator=operator, calls=len(times), seconds=sum(times) / 1e6)
        for (_, name, operator), times in durations.items()
    ]
