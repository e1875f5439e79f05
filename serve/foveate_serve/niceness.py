"""Nice levels: which threads run first where there are more of them than cores."""

import os
import sys
import threading

ENGINE = 5
"""The nice level of engine threads, above that of the event loop and of gRPC's threads: a call is
admitted or refused at once while engines run, and waits in no queue that admission does not see."""

DECODER = 10
"""The nice level of threads that decode and draw, above that of engine threads: these wait for each
other at every operator, so that one whose core runs a decoder delays all of them."""

_HIGHEST = 19


def raise_niceness(by: int) -> None:
    """Raise the nice level of the calling thread, and of the threads that it starts later."""
    # On other systems than Linux a nice level belongs to the whole process.
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + by
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _HIGHEST))
