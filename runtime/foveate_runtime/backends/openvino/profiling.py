"""Reads what OpenVINO counts of a model that was compiled with PERF_COUNT."""

from collections.abc import Sequence
from typing import Any

import openvino

from foveate_runtime.backends.base import OperatorTime


def read(request: Any, *, runs: int) -> list[OperatorTime]:
    """Return what each node took in all `runs` runs since the model was compiled.

    OpenVINO reports the mean of those runs. It reports nodes that were merged into
    others, and those of less than a microsecond, as not run: they are left out.
    """
    return [
        OperatorTime(
            name=node.node_name,
            operator=node.node_type,
            calls=runs,
            seconds=runs * node.real_time.total_seconds(),
        )
        for node in request.get_profiling_info()
        if node.status == openvino.ProfilingInfo.Status.EXECUTED
    ]


def subtract(
    after: Sequence[OperatorTime], before: Sequence[OperatorTime], *, warm_up: int
) -> list[OperatorTime]:
    """Return what nodes took in all runs of `after` less those of `before`, `warm_up` of them.

    A node of about a microsecond may stand in one of the two alone.
    """
    earlier = {node.name: node.seconds for node in before}
    return [
        OperatorTime(
            name=node.name,
            operator=node.operator,
            calls=node.calls - warm_up,
            # The means are of whole microseconds.
            seconds=max(0.0, node.seconds - earlier.get(node.name, 0.0)),
        )
        for node in after
    ]
