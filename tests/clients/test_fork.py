"""A client is of no use in a forked process, and says so at once."""

import subprocess
import sys

import pytest

CHILD = """
import asyncio, os, sys
from foveate_client import AsyncClient, Client, ForkedError, RepositoryClient

kind, target, picture = sys.argv[1:]


async def ask(client):
    await client.classify(picture)


if kind == "async":
    client = AsyncClient.local(target)
    calls = [lambda: asyncio.run(ask(client))]
    end = lambda: asyncio.run(client.close())
elif kind == "repository":
    client = RepositoryClient(target)
    calls = [lambda: client.load("pets")]
    end = client.close
else:
    client = Client.local(target) if kind == "local" else Client(target)
    client.classify(picture)
    calls = [
        lambda: client.classify(picture),
        lambda: list(client.classify_many([picture])),
        lambda: list(client.models()),
        lambda: client.model("pets"),
    ]
    end = client.close
child = os.fork()
if child == 0:
    for call in calls:
        try:
            call()
        except ForkedError as error:
            assert str(error) == "the client was made before a fork; make one in each process"
        else:
            os._exit(2)
    end()
    os._exit(0)
_, status = os.waitpid(child, 0)
if kind in {"local", "grpc"}:
    client.classify(picture)
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("kind", ["grpc", "repository", "local", "async"])
def test_calls_in_a_child_are_refused_and_those_of_the_parent_go_on(
    kind: str, server, imagenet_repository, coffee
) -> None:
    target = server.address if kind in {"grpc", "repository"} else imagenet_repository
    command = [sys.executable, "-W", "ignore", "-c", CHILD, kind, str(target), str(coffee)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0
