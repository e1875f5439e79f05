"""The soft limit of open files is raised to the hard one."""

import asyncio
import errno
import logging
import resource
import subprocess
import sys

import pytest

from foveate_serve.files import OneLine

PROGRAM = """
import logging, resource, sys
from foveate_serve.files import raise_open_files

logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
raise_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""

_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.mark.parametrize(("soft", "hard"), [(256, 512), (512, 512), (100, min(HARD, 1 << 20))])
def test_the_soft_limit_becomes_the_hard_one_and_is_logged(soft: int, hard: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert done.stdout == f"{hard} {hard}\n"
    assert done.stderr == f"INFO at most {hard} files and connections can be open\n"


async def test_the_limit_when_reached_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    handler = OneLine()
    full = OSError(errno.EMFILE, "Too many open files")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            handler(loop, {"message": "socket.accept() out of system resource", "exception": full})
        handler(loop, {"message": "something else", "exception": EOFError()})
    told, other = (record.getMessage() for record in caplog.records)
    assert told.startswith("connections are not taken: Too many open files; raise the hard limit")
    assert other == "something else"


def test_connections_leave_files_for_probes_and_models() -> None:
    program = """
import resource
from foveate_serve.files import HTTP_SHARE, connections_within
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
print(connections_within(10_000), connections_within(10_000, share=HTTP_SHARE))
print(connections_within(7), connections_within(7, share=HTTP_SHARE))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "640 128\n7 7\n"
