"""Ways to send the same requests, compared in turn by the CPU time of the server."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import machine, pages
from benchmarks.request_cost import ratio, summary
from benchmarks.server import Server

ROUNDS = 15

Send = Callable[[], None]
"""Sends the requests of one turn."""


def cpu_ms(server: Server, count: int, send: Send) -> float:
    """Send so many requests; return the server's CPU-ms for each."""
    start = server.cpu_seconds()
    send()
    return 1e3 * (server.cpu_seconds() - start) / count


def measure(
    benchmark: str,
    kinds: Mapping[str, tuple[int, Mapping[str, tuple[Server, Send]]]],
    ways: tuple[str, str],
) -> dict[str, Any]:
    """Take every kind of request in every way, in random turns; return the costs and ratios.

    Args:
        benchmark: the name for the result.
        kinds: by name, how many requests a turn sends, and its server and what sends them, by way.
        ways: the one whose cost is divided, and the one that it is divided by.
    """
    samples: dict[str, dict[str, list[float]]] = {
        name: {way: [] for way in turns} for name, (_, turns) in kinds.items()
    }
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    for number in range(ROUNDS + 1):
        for name, (count, turns) in kinds.items():
            for way in chance.sample(list(turns), len(turns)):
                server, send = turns[way]
                taken = cpu_ms(server, count, send)
                if number > 0:  # the first round warms up
                    samples[name][way].append(taken)
    above, below = ways
    return {
        "benchmark": benchmark,
        "rounds": ROUNDS,
        "cpu_ms": {
            name: {way: summary(values) for way, values in by.items()}
            for name, by in samples.items()
        },
        "ratio": {name: ratio(by[above], by[below]) for name, by in samples.items()},
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any], ways: Sequence[str]) -> str:
    """Return the table for a page, with a column for each way."""
    rows = [
        [
            name,
            *(pages.middle(costs[way], 2) for way in ways),
            pages.middle(result["ratio"][name], 2),
        ]
        for name, costs in result["cpu_ms"].items()
    ]
    return (
        f"Medians of {result['rounds']} rounds, with the least and the largest:\n\n"
        f"{pages.table(['CPU-ms of the server', *ways, 'ratio'], rows)}"
    )
