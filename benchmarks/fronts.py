"""Several processes before one GPU: a model in each, or one engine that all of them share.

    python -m benchmarks.fronts [--out FILE] [--page FILE]

A simulation (simpy) with the processor times of results/stages.json and a hand-over between
two processes that is measured now. A front process has one event loop, which takes its share
of a core for each request, and decoders on all cores. In the one arrangement each process has
a model of its own, as `foveate serve --workers` does: the GPU runs one process's batch at a
time, of that process's pictures alone. In the other a front process copies a picture into
shared memory and wakes an engine process, which makes batches of everyone's pictures. A third
column has a model in each process and decodes on the GPU, which is taken to cost nothing.

No GPU was at hand. What a batch takes there is an assumption, stated in the result, for a
small network and a large one; so are the memory of a context and the change between processes.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import simpy

from benchmarks import machine, pages, script

RESULTS = Path(__file__).parent / "results" / "fronts.json"
STAGES = Path(__file__).parent / "results" / "stages.json"
PAGE = pages.DOCS / "serving" / "gpu-processes.md"

CORES = 16
"""Of the machine around the GPU."""
PROCESSES = (1, 2, 4, 8, 16)
CALLERS = 64
"""Requests at once for each front process, enough for full batches."""
MAX_BATCH = 64
PICTURES = 20_000
"""Of a simulation, the first tenth of which is not counted."""

PICTURE_BYTES = 224 * 224 * 3
ANSWER_BYTES = 4 * 1000
HANDED = 5_000
"""Pictures of the measured hand-over."""
SLOTS = 64

_Steps: TypeAlias = Generator[Any, Any, None]


@dataclass(frozen=True)
class Gpu:
    """What a GPU is assumed to take, in milliseconds, and its memory in GiB."""

    network: str
    launch: float
    picture: float
    change: float
    context: float
    model: float


GPUS = (
    Gpu("small", launch=0.5, picture=0.05, change=0.2, context=0.5, model=0.3),
    Gpu("large", launch=1.0, picture=1.0, change=0.2, context=0.5, model=1.5),
)


@dataclass(frozen=True)
class Host:
    """Milliseconds of a core that a picture takes: in its event loop, decoded, handed over."""

    loop: float
    decode: float
    hand_over: float
    take_over: float


def _engine_process(memory: str, waiting: int, done: int, told: int) -> None:
    """Take pictures out of shared memory into a batch, and put answers there."""
    shared = SharedMemory(memory)
    slots = np.ndarray((SLOTS, PICTURE_BYTES + ANSWER_BYTES), np.uint8, buffer=shared.buf)
    batch = np.empty((SLOTS, PICTURE_BYTES), np.uint8)
    answer = np.ones(ANSWER_BYTES, np.uint8)
    before, taken = time.process_time(), 0
    while taken < HANDED:
        come = os.read(waiting, SLOTS)
        for place, slot in enumerate(come):
            batch[place] = slots[slot, :PICTURE_BYTES]
            slots[slot, PICTURE_BYTES:] = answer
        os.write(done, come)
        taken += len(come)
    os.write(told, json.dumps(time.process_time() - before).encode())
    del slots
    shared.close()


def measure_hand_over() -> tuple[float, float]:
    """Return the milliseconds of a core that a picture takes on either side of shared memory."""
    context = multiprocessing.get_context("fork")
    shared = SharedMemory(create=True, size=SLOTS * (PICTURE_BYTES + ANSWER_BYTES))
    pipes = [os.pipe() for _ in range(3)]
    (waiting, wake), (done, finish), (told, tell) = pipes
    engine = context.Process(target=_engine_process, args=(shared.name, waiting, finish, tell))
    engine.start()
    slots = np.ndarray((SLOTS, PICTURE_BYTES + ANSWER_BYTES), np.uint8, buffer=shared.buf)
    picture = np.random.default_rng(0).integers(0, 255, PICTURE_BYTES, dtype=np.uint8)
    free, sent, answered = list(range(SLOTS)), 0, 0
    before = time.process_time()
    while answered < HANDED:
        while free and sent < HANDED:
            slot = free.pop()
            slots[slot, :PICTURE_BYTES] = picture
            os.write(wake, bytes([slot]))
            sent += 1
        for slot in os.read(done, SLOTS):
            assert slots[slot, PICTURE_BYTES:].all()
            free.append(slot)
            answered += 1
    front = time.process_time() - before
    behind = float(json.loads(os.read(told, 64)))
    engine.join()
    for descriptor in (descriptor for pipe in pipes for descriptor in pipe):
        os.close(descriptor)
    del slots
    shared.close()
    shared.unlink()
    return 1000 * front / HANDED, 1000 * behind / HANDED


class Simulation:
    """Callers, front processes, cores and a GPU; `run` says what came of it."""

    def __init__(self, host: Host, gpu: Gpu, processes: int, *, shared: bool) -> None:
        self._host, self._gpu, self._processes, self._shared = host, gpu, processes, shared
        self._environment = simpy.Environment()
        self._cores = simpy.PriorityResource(self._environment, CORES)
        self._decoders = simpy.Resource(self._environment, CORES)
        self._device = simpy.Resource(self._environment, 1)
        self._loops = [simpy.Resource(self._environment, 1) for _ in range(processes)]
        engines = 1 if shared else processes
        self._queues = [simpy.Store(self._environment) for _ in range(engines)]
        self._total = PICTURES + CALLERS * processes
        self._ended = self._environment.event()
        self._answered: list[float] = []
        self._batches: list[int] = []
        self._last = -1

    def run(self) -> dict[str, float]:
        """Return the pictures a second, the mean batch and the memory of the GPU."""
        for number, queue in enumerate(self._queues):
            self._environment.process(self._engine(number, queue))
        for number in range(self._processes):
            queue = self._queues[number % len(self._queues)]
            for _ in range(CALLERS):
                self._environment.process(self._caller(self._loops[number], queue))
        self._environment.run(until=self._ended)
        steady = self._answered[len(self._answered) // 10 :]
        return {
            "pictures_a_second": round(1000 * len(steady) / (steady[-1] - steady[0])),
            "batch": round(float(np.mean(self._batches)), 1),
            "gpu_gib": round(len(self._queues) * (self._gpu.context + self._gpu.model), 1),
        }

    def _caller(self, loop: simpy.Resource, queue: simpy.Store) -> _Steps:
        while not self._ended.triggered:
            yield from self._in_turn(loop, self._host.loop / 2)
            yield from self._in_turn(self._decoders, self._host.decode)
            if self._shared:
                yield from self._in_turn(loop, self._host.hand_over)
            done = self._environment.event()
            yield queue.put(done)
            yield done
            yield from self._in_turn(loop, self._host.loop / 2)
            self._answered.append(self._environment.now)
            if len(self._answered) == self._total:
                self._ended.succeed()

    def _in_turn(self, thread: simpy.Resource, milliseconds: float) -> _Steps:
        with thread.request() as turn:
            yield turn
            yield from self._on_core(milliseconds)

    def _on_core(self, milliseconds: float, priority: int = 1) -> _Steps:
        with self._cores.request(priority) as own:
            yield own
            yield self._environment.timeout(milliseconds)

    def _engine(self, number: int, queue: simpy.Store) -> _Steps:
        while True:
            batch = [(yield queue.get())]
            with self._device.request() as own:
                yield own
                # What has come while the GPU was busy rides along.
                while queue.items and len(batch) < MAX_BATCH:
                    batch.append((yield queue.get()))
                # The kernel wakes a thread that slept before those that have run.
                yield from self._on_core(self._host.take_over * len(batch), priority=0)
                taken = self._gpu.launch + self._gpu.picture * len(batch)
                if self._last not in (-1, number):
                    taken += self._gpu.change
                yield self._environment.timeout(taken)
            self._last = number
            self._batches.append(len(batch))
            for done in batch:
                done.succeed()


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    host = result["host"]
    measured = (
        f"A photograph takes {host['loop']:.2f} ms of its process's event loop and "
        f"{host['decode']:.2f} ms of any core. To hand it over through shared memory takes "
        f"{host['hand_over']:.3f} ms on the one side and {host['take_over']:.3f} ms on the other."
    )
    told = [measured]
    for gpu in result["gpus"]:
        told.append(
            f"A {gpu['network']} network, of which a batch is assumed to take {gpu['launch']:g} ms "
            f"and {gpu['picture']:g} ms for each picture, on a machine of {CORES} cores, in "
            "pictures a second, pictures a batch and memory of the GPU in GiB:"
        )
        rows = [
            [
                str(row["processes"]),
                *(
                    text
                    for kind in ("own", "shared")
                    for text in (
                        f"{row[kind]['pictures_a_second']:,}",
                        f"{row[kind]['batch']:.1f}",
                        f"{row[kind]['gpu_gib']:g}",
                    )
                ),
                f"{row['decoded_on_gpu']['pictures_a_second']:,}",
            ]
            for row in gpu["rows"]
        ]
        head = ["processes", "a model in each", "batch", "GiB"]
        head += ["one engine for all", "batch", "GiB", "a model in each, decoded on the GPU"]
        told.append(pages.table(head, rows))
    return "\n\n".join(told)


def main() -> int:
    """Measure the hand-over, simulate, and return the exit code."""
    options = script.parse(script.Options, __doc__, out=RESULTS, page=PAGE)
    cpu = json.loads(STAGES.read_text("utf-8"))["cases"]["a photograph, as chosen"]["cpu_ms"]
    hand_over, take_over = measure_hand_over()
    host = Host(
        loop=cpu["rest"],
        decode=round(cpu["decode"] + cpu["resize"], 3),
        hand_over=round(hand_over, 4),
        take_over=round(take_over, 4),
    )
    undecoded = replace(host, decode=0.0)
    gpus = [
        {
            **asdict(gpu),
            "rows": [
                {
                    "processes": processes,
                    "own": Simulation(host, gpu, processes, shared=False).run(),
                    "shared": Simulation(host, gpu, processes, shared=True).run(),
                    "decoded_on_gpu": Simulation(undecoded, gpu, processes, shared=False).run(),
                }
                for processes in PROCESSES
            ],
        }
        for gpu in GPUS
    ]
    result = {
        "benchmark": "fronts",
        "cores": CORES,
        "max_batch": MAX_BATCH,
        "host": asdict(host),
        "gpus": gpus,
        "machine": machine.describe(),
    }
    script.finish(result, page_part, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
