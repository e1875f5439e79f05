"""How many Python functions, in how many files, one warm Classify passes.

python -m benchmarks.call_count [--repository DIR] [--requests N] [--before FILE]

The services run in this process with the default settings, and `sys.setprofile`
counts every Python function that starts, on the event loop and on the threads of
the engine. A digit and a photograph are asked for one at a time, by a client in
another process, through both transports, and by a call of the handler alone. A
coroutine counts once, when it starts. A file counts where nearly every request
passes it. The depth is that of the coroutines that await each other. With
--before, the figures of an earlier results file are kept beside the new ones.
"""

import argparse
import asyncio
import dis
import inspect
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_runtime.options import option, parse
from foveate_serve.assembly import make_engine
from foveate_serve.process import Process
from foveate_serve.rpc.handlers import ClassifierHandler
from foveate_serve.settings import Settings, TransportName

RESULTS = Path(__file__).parent / "results" / "call_count.json"
PICTURES = {"mnist": "digit.png", "efficientnet_lite0": "coffee.jpg"}
DIRECT = "handler"
TRANSPORTS: tuple[TransportName, ...] = ("grpcio", "http2")
WARM = 50
MOST = 0.9
"""The share of the requests that pass a file for it to count."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; `ask` is the address of the server, in the client's process."""

    repository: Path = option("of the classifiers", default=Path("demo-output/repository"))
    pictures: Path = option("the pictures of the demo", default=Path("demo-output/pictures"))
    requests: int = option("of each model", default=200)
    before: Path | None = option("a results file of an earlier state")
    out: Path = option("the file of the results", default=RESULTS)
    ask: str | None = option(argparse.SUPPRESS)


class Starts:
    """The functions that start while it counts, by file."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.depth = 0
        self._counting = False

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """Count a frame that starts: a function for `sys.setprofile`."""
        if event != "call" or not self._counting:
            return
        # The event also marks every resumption of a coroutine.
        if frame.f_lasti > _first_instruction(frame.f_code):
            return
        self._counts[_file(frame.f_code, frame.f_globals.get("__name__", ""))] += 1
        if frame.f_code.co_flags & inspect.CO_COROUTINE:
            self.depth = max(self.depth, _coroutines(frame))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count from zero until the block ends."""
        self._counts.clear()
        self.depth = 0
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def summary(self, requests: int) -> dict[str, object]:
        """Return the calls and the files of one of so many requests, ours apart from others'."""
        files = self._counts
        ours = {name: n for name, n in files.items() if name.startswith("foveate")}
        passed = [name for name, n in files.items() if n >= MOST * requests]
        return {
            "calls": round(sum(files.values()) / requests),
            "calls_of_ours": round(sum(ours.values()) / requests),
            "files": len(passed),
            "files_of_ours": sum(name in ours for name in passed),
            "coroutines_deep": self.depth,
            "calls_by_file": {
                name: round(n / requests, 1)
                for name, n in sorted(files.items(), key=lambda item: -item[1])
                if n >= MOST * requests
            },
        }


@cache
def _first_instruction(code: CodeType) -> int:
    """Return the offset at which a frame of the code is when it starts."""
    resumes = (i.offset for i in dis.get_instructions(code) if i.opname == "RESUME")
    return next(resumes, 0)


def _coroutines(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += bool(frame.f_code.co_flags & inspect.CO_COROUTINE)
        frame = frame.f_back
    return depth


@cache
def _file(code: CodeType, module: str) -> str:
    """Return the file of a code from its package on, such as foveate_serve/engine/engine.py."""
    if code.co_filename.startswith("<"):  # written by dataclasses or by namedtuple
        return module.replace(".", "/") + ".py"
    parts = Path(code.co_filename).parts
    for root in ("site-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    first = next((n for n, part in enumerate(parts) if part.startswith("foveate")), 0)
    return "/".join(parts[first:])


def requests_of(pictures: Path) -> dict[str, ClassifyRequest]:
    """Return a request for each model."""
    return {
        model: ClassifyRequest(model=model, encoded=(pictures / name).read_bytes())
        for model, name in PICTURES.items()
    }


async def through_transport(
    starts: Starts, transport: TransportName, options: Options
) -> dict[str, Any]:
    """Count requests that a client in another process makes."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    process = Process(
        Settings(repository=options.repository, address="127.0.0.1:0", transport=transport)
    )
    serving = asyncio.create_task(process.run(stop, lambda _, bound: address.set_result(bound)))
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.call_count", "--ask", await address),
        *("--pictures", options.pictures),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    questions, answers = client.stdin, client.stdout
    assert questions is not None
    assert answers is not None

    async def ask(model: str, count: int) -> None:
        questions.write(f"{model} {count}\n".encode())
        assert await answers.readline(), "the client has ended"

    found = {}
    for model in PICTURES:
        await ask(model, WARM)
        with starts.counting():
            await ask(model, options.requests)
        found[model] = starts.summary(options.requests)
    questions.close()
    await client.wait()
    stop.set()
    await serving
    return found


async def of_handler(starts: Starts, options: Options) -> dict[str, Any]:
    """Count calls of the handler, without a transport."""
    engine = make_engine(Settings(repository=options.repository))
    await engine.repository.open()
    classify = ClassifierHandler(engine, stream_window=32).classify
    found = {}
    for model, request in requests_of(options.pictures).items():
        for _ in range(WARM):
            await classify(request, None)
        with starts.counting():
            for _ in range(options.requests):
                await classify(request, None)
        found[model] = starts.summary(options.requests)
    await engine.close()
    return found


def client(address: str, pictures: Path) -> None:
    """Ask for each line of stdin, "MODEL COUNT", and write a line when all are answered."""
    requests = requests_of(pictures)
    with grpc.insecure_channel(address) as channel:
        classify: Callable[..., Any] = ClassifierServiceStub(channel).Classify
        for line in sys.stdin:
            model, count = line.split()
            for _ in range(int(count)):
                assert classify(requests[model], timeout=60).predictions
            print("answered", flush=True)


def measure(options: Options) -> dict[str, Any]:
    """Count on every way, one after another."""
    starts = Starts()
    threading.setprofile(starts.note)
    sys.setprofile(starts.note)
    try:
        ways = {way: asyncio.run(through_transport(starts, way, options)) for way in TRANSPORTS}
        ways[DIRECT] = asyncio.run(of_handler(starts, options))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return ways


def report(result: dict[str, Any]) -> None:
    """Print the figures, those of before beside them."""
    table = Table("way", "model", "calls", "of ours", "files", "of ours", "coroutines deep")
    for title in ("before", "now"):
        for way, models in result.get(title, {}).items():
            for model, row in models.items():
                keys = ("calls", "calls_of_ours", "files", "files_of_ours", "coroutines_deep")
                table.add_row(f"{way}, {title}", model, *(str(row[key]) for key in keys))
    Console().print(table)


def main() -> None:
    """Parse the command line, count, write the results and print them."""
    options = parse(
        Options,
        sys.argv[1:],
        prog="python -m benchmarks.call_count",
        description=__doc__.partition("\n")[0],
        epilog="",
    )
    if options.ask:
        client(options.ask, options.pictures)
        return
    result: dict[str, Any] = {"benchmark": "call_count", "requests": options.requests}
    if options.before:
        result["before"] = json.loads(options.before.read_text(encoding="utf-8"))["now"]
    result["now"] = measure(options)
    result["machine"] = machine.describe()
    machine.save(result, options.out)
    report(result)
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
