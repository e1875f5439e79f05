"""Networks that are slow, lossy or cut, and servers that take over from each other."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

from .bench import Bench, Seen, Skipped, fixed_address, seen
from .processes import LATE

_INSIDE, _OUTSIDE = "10.213.7.2", "10.213.7.1"
_numbers = count(1)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def _namespace() -> Iterator[tuple[str, str]]:
    """Make a network namespace behind a cable, which takes root; yield its name and the cable's."""
    # The kernel takes a cable away a moment after its namespace: each has a name of its own.
    number = f"{os.getpid()}-{next(_numbers)}"
    name, outside, inside = f"foveate{number}", f"fo{number}", f"fi{number}"
    try:
        _run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped("no network namespace can be made") from error
    try:
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _run("ip", "address", "add", f"{_OUTSIDE}/30", "dev", outside)
        _run("ip", "link", "set", outside, "up")
        within = ("ip", "netns", "exec", name)
        _run(*within, "ip", "address", "add", f"{_INSIDE}/30", "dev", inside)
        _run(*within, "ip", "link", "set", inside, "up")
        yield name, outside
    finally:
        _run("ip", "netns", "del", name)


def _degraded(bench: Bench, *netem: str, note: str) -> Seen:
    """Ask a server over a network that `tc netem` makes worse for some seconds."""
    with (
        _namespace() as (name, cable),
        bench.serving(address=f"{_INSIDE}:50051", prefix=("ip", "netns", "exec", name)) as server,
        bench.asking(server.address) as honest,
    ):
        honest.breaks()
        try:
            _run("tc", "qdisc", "add", "dev", cable, "root", "netem", *netem)
        except subprocess.CalledProcessError as error:
            raise Skipped("the kernel has no netem") from error
        honest.hold(4.0)
        _run("tc", "qdisc", "del", "dev", cable, "root")
        honest.settle()
        return seen(honest, note, allowed=LATE)


def slow_network(bench: Bench) -> Seen:
    """200 ms more on the way to the server, give or take 50"""
    return _degraded(bench, "delay", "200ms", "50ms", note="calls take longer")


def lossy_network(bench: Bench) -> Seen:
    """one packet in twenty is lost"""
    return _degraded(bench, "loss", "5%", note="calls take longer")


def cut_network(bench: Bench) -> Seen:
    """the cable is cut for three seconds"""
    with (
        _namespace() as (name, cable),
        bench.serving(address=f"{_INSIDE}:50051", prefix=("ip", "netns", "exec", name)) as server,
        bench.asking(server.address) as honest,
    ):
        honest.breaks()
        _run("ip", "link", "set", cable, "down")
        honest.hold(3.0)
        _run("ip", "link", "set", cable, "up")
        honest.settle()
        return seen(honest, "calls wait for it, or reach their deadline", allowed=LATE)


def rolling_restart(bench: Bench) -> Seen:
    """two servers, started anew one after the other, under a client of both"""
    addresses = [fixed_address(), fixed_address()]
    with ExitStack() as stack:
        servers = [stack.enter_context(bench.serving(address=address)) for address in addresses]
        with bench.asking(f"ipv4:{','.join(addresses)}", attempts=4) as honest:
            honest.breaks()
            for number, address in enumerate(addresses):
                assert servers[number].stop() == 0
                servers[number] = stack.enter_context(bench.serving(address=address))
                # A client looks again for a server that was away within five seconds.
                honest.hold(6.0)
            return seen(honest, "no call fails", allowed=frozenset())


FAULTS = (slow_network, lossy_network, cut_network, rolling_restart)
