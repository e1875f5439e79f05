"""Which threads go first where there are more of them than cores."""

import os
import sys
import threading

ENGINE = 5
"""Of the threads of engines, above that of the event loop and of gRPC's threads: a call is taken
or refused at once while engines run, and waits nowhere that admission does not see."""

DECODER = 10
"""Of the threads that decode and draw, above that of engines, whose threads wait for each other at
every operator: one that has to give its core to a decoder holds up the others too."""

_HIGHEST = 19


def step_back(by: int) -> None:
    """Raise the niceness of the calling thread, and of those it starts from now on."""
    # Elsewhere than on Linux a niceness is that of the whole process.
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + by
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _HIGHEST))
