"""OpenVINO itself, of which a process has one.

A Core's CPU plugin puts a stack for signals in the place of the thread's, and brings
that one back when it is released. Of two Cores released in the order in which they
were made the second brings back the first's, which is freed by then, and the next
signal, such as Ctrl-C's, ends the process.
"""

import openvino

CORE = openvino.Core()
"""The process's Core, which is never released, and which threads may share."""
