"""Photographs a second and processor time: a server against bare loops.

    python -m benchmarks.throughput [--repository DIR] [--images DIR] [--calibration DIR]
        [--seconds S] [--rounds N]

The loops are those of `benchmarks.loops`: the floor, which does what a request
cannot do without, the obvious one, and the floor with one photograph at a time.
Two servers stand against them, each a process of its own that is asked in
closed loop: one held to what the floor does (fp32 in ONNX Runtime), and one
without any option, on a bundle that is exported first, with the int8 variant at
its head. It answers photographs of the usual size, and enlarged ones of twelve
megapixels as a phone makes them. The first server also answers with the class
activation maps of the five best classes, as raw maps and as overlays; in open
loop at 70 % of its highest rate; and digits, one by one. A third server has
LeNet-5, whose run costs next to nothing: what its digits take is what the rest of a
request takes. Nothing there waits for a thread (`--engine-timeout 0`). A fourth one
has LeNet-5 too, and takes requests of many digits each (`benchmarks.batched`).

Rounds alternate everything, so that a drifting machine does not favour one, and
ratios are taken round by round. CPU time is that of the server's whole process
tree, or of the loop's process; the load comes from this machine too. Before the
clock starts the answers are checked: the first server's against the floor, the
second's against the obvious loop and the photographs' classes, which are the
names of their folders. The tables go into docs/performance.md as well.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import machine, pages, script
from benchmarks.asking import DIGITS, METHOD, OVERLAYS, RAW_MAPS, TIMEOUT, digits
from benchmarks.batched import LIMITS, Batches
from benchmarks.digits import NAME as LENET
from benchmarks.digits import export_lenet
from benchmarks.loops import Loop, looping
from benchmarks.pictures import enlarged
from benchmarks.request_cost import MODEL, ratio, summary
from benchmarks.server import HELD, Server, serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_client.load.driver import Driver, connect
from foveate_client.load.recorder import Measurement
from foveate_client.load.workload import PLAIN, Workload
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.evaluation.labelled import ImageFolder, open_folder
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "throughput.json"
PAGE = pages.DOCS / "performance.md"

CONCURRENCIES = (1, 8, 32)
COPIES = 3
"""Of the photographs in a run of a loop, so that filling and emptying it weighs little."""
LARGE = 25
OPEN_SHARE = 0.7
OPEN_ROUNDS = 3

TARGETS = {
    "server / floor, CPU a request": "at most 1.05",
    "server / floor, photographs a second": "at least 0.92",
    "chosen / obvious, photographs a second": "at least 2",
    "chosen / obvious, photographs of 12 megapixels a second": "at least 3",
    "chosen, agreement with the obvious loop": "at least 0.97",
    "chosen - obvious, top-1 in points": "at least -1",
    "server alone / floor alone, p50": "at most 1.2",
    "digit alone, LeNet-5, p50 in ms": "at most 1",
    "digits a second in batches": "at least 15,000",
    "p99 / p50 at 70 %": "at most 3",
    "raw maps / plain, CPU a request": "at most 1.05",
    "overlays / plain, CPU a request": "at most 1.35",
}


@dataclass(frozen=True)
class Target:
    """A server and the requests that it is asked."""

    server: Server
    requests: Sequence[ClassifyRequest]

    def best(self) -> list[int]:
        """Return the best class of each picture."""
        with grpc.insecure_channel(self.server.address) as channel:
            calls = [ClassifierServiceStub(channel).Classify.future(x) for x in self.requests]
            return [call.result(timeout=TIMEOUT).predictions[0].class_id for call in calls]

    def closed(self, concurrency: int, seconds: float) -> dict[str, float]:
        """Keep `concurrency` requests going; return the rate, the CPU-ms a request and the p50."""
        start = self.server.cpu_seconds()
        measured = self._drive(seconds, concurrency=concurrency)
        cpu = self.server.cpu_seconds() - start
        return {
            "rate": measured.rate,
            "cpu_ms": 1000 * cpu / measured.requests,
            "p50_ms": 1000 * measured.overall.percentiles([50.0])[50.0],
        }

    def open(self, rate: float, seconds: float) -> float:
        """Send `rate` requests a second; return the p99 over the p50."""
        found = self._drive(seconds, rate=rate).overall.percentiles([50.0, 99.0])
        return found[99.0] / found[50.0]

    def _drive(
        self, seconds: float, *, concurrency: int = 0, rate: float | None = None
    ) -> Measurement:
        workload = Workload(
            method=METHOD,
            model=self.requests[0].model,
            requests={PLAIN: [request.SerializeToString() for request in self.requests]},
            shares={PLAIN: 1.0},
        )

        async def drive() -> Measurement:
            async with connect(self.server.address, 1) as channels:
                driver = Driver(channels, workload, timeout=TIMEOUT)
                if rate is not None:
                    return await driver.open(rate, seconds=seconds, warmup=0)
                return await driver.closed(concurrency, seconds=seconds, warmup=0)

        measured = asyncio.run(drive())
        assert not measured.errors, measured.errors
        return measured


@dataclass
class Samples:
    """What was measured in each round, by name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Note what one round gave."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def over(self, above: str, below: str) -> dict[str, float]:
        """Return the summary of the ratios, round by round."""
        return ratio(self.values[above], self.values[below])


def run_loop(loop: Loop) -> dict[str, Any]:
    """Run a loop once; return its photographs a second, CPU-ms a photograph and best classes."""
    answer = loop.run()
    count = len(answer["best"])
    return {"rate": count / answer["seconds"], "cpu_ms": 1000 * answer["cpu"] / count, **answer}


def export_chosen(repository: Path, calibration: Path) -> None:
    """Export the classifier with int8 first, which a server then takes by itself."""
    foveate = Path(sys.executable).with_name("foveate")
    command = [foveate, "export", f"package:{MODEL}", "--repository", repository, "--name", MODEL]
    variants = ["--variants", "int8,fp32", "--calibration", calibration]
    subprocess.run([*command, *variants], check=True, stdout=subprocess.DEVNULL)


def enlarge(pictures: Sequence[bytes], folder: Path) -> list[bytes]:
    """Write the pictures into `folder` at twelve megapixels, and return the files."""
    files = []
    for number, picture in enumerate(pictures):
        path = folder / f"{number:02}.jpg"
        enlarged(picture).save(path, "JPEG", quality=90)
        files.append(path.read_bytes())
    return files


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that is measured, running."""

    loops: Mapping[str, Loop]
    targets: Mapping[str, Target]
    batches: Batches
    floor_best: Sequence[int]
    classes: Sequence[int]

    def check(self) -> dict[str, object]:
        """Check the answers; return the facts of the server that chooses by itself."""
        server = self.targets["server"].best()
        assert server == list(self.floor_best), "the server does not agree with the floor"
        for name in ("raw maps", "overlays"):
            assert self.targets[name].best() == server, f"{name} change the classes"
        obvious = self.loops["obvious"].run()["best"][: len(self.classes)]
        chosen = self.targets["chosen"].best()
        with grpc.insecure_channel(self.targets["chosen"].server.address) as channel:
            request = self.targets["chosen"].requests[0]
            answer = ClassifierServiceStub(channel).Classify(
                ClassifyRequest(model=MODEL, encoded=request.encoded, timing=True)
            )
        large = self.loops["obvious large"].run()["best"]
        agreement = np.mean(np.equal(self.targets["chosen large"].best(), large))
        return {
            "backend": answer.timing.backend,
            "variant": answer.timing.variant,
            "agreement with the obvious loop": float(np.mean(np.equal(chosen, obvious))),
            "agreement on photographs of 12 megapixels": float(agreement),
            "top1": float(np.mean(np.equal(chosen, self.classes))),
            "top1 of the obvious loop": float(np.mean(np.equal(obvious, self.classes))),
        }

    def round(self, seconds: float) -> dict[str, float]:
        """Measure everything once."""
        found: dict[str, float] = {}
        for name, loop in self.loops.items():
            answer = run_loop(loop)
            found |= {f"{name}: rate": answer["rate"], f"{name}: cpu_ms": answer["cpu_ms"]}
            if "latencies" in answer:
                found[f"{name}: p50_ms"] = 1000 * float(np.median(answer["latencies"]))
        for name, target in self.targets.items():
            for concurrency in self.concurrencies(name):
                for key, value in target.closed(concurrency, seconds).items():
                    found[f"{name} at {concurrency}: {key}"] = value
        for key, value in self.batches.closed(seconds).items():
            found[f"small digits in batches: {key}"] = value
        return found

    @staticmethod
    def concurrencies(target: str) -> tuple[int, ...]:
        """Return at how many requests at once a target is measured."""
        if target == "digit":
            return CONCURRENCIES[:1]
        if target == "small digit":
            return CONCURRENCIES[0], CONCURRENCIES[-1]
        return CONCURRENCIES if target in ("server", "chosen") else CONCURRENCIES[-1:]


@dataclass(frozen=True, kw_only=True)
class Options(script.Calibrated):
    """The command line."""

    seconds: float = option("of each measurement", default=3.0)
    rounds: int = option("of all measurements", default=5)


@contextmanager
def running(options: Options) -> Iterator[Bench]:
    """Start the loops and the servers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (bundle,) = (options.repository / MODEL).glob("[0-9]*")
        (digit_bundle,) = (options.repository / DIGITS).glob("[0-9]*")
        photographs = open_folder(options.images, Bundle.open(bundle).labels)
        pictures = [path.read_bytes() for _, path, _ in photographs]
        several, large = folder / "several", folder / "large"
        copy(photographs, several)
        large.mkdir()
        enlarged = enlarge(pictures[:: len(pictures) // LARGE][:LARGE], large)
        export_chosen(folder / "chosen", options.calibration)

        server = stack.enter_context(serving(options.repository, *HELD))
        chosen = stack.enter_context(serving(folder / "chosen"))
        lenet = export_lenet(folder / "digits")
        # Without it a run that hangs would be noticed, at the price of a change of thread.
        small = stack.enter_context(serving(lenet.parents[1], "--engine-timeout", "0"))
        batches = stack.enter_context(serving(lenet.parents[1], *LIMITS))
        cams = {"raw maps": RAW_MAPS, "overlays": OVERLAYS}
        plain = [ClassifyRequest(model=MODEL, encoded=picture) for picture in pictures]
        explained = {
            name: [ClassifyRequest(model=MODEL, encoded=picture, cam=cam) for picture in pictures]
            for name, cam in cams.items()
        }
        bundles = {
            "floor": (bundle, several),
            "obvious": (bundle, several),
            "alone": (bundle, options.images),
            "obvious large": (bundle, large),
        }
        loops = {
            name: stack.enter_context(looping(name.split()[0], *what))
            for name, what in bundles.items()
        }
        yield Bench(
            loops=loops,
            targets={
                "server": Target(server, plain),
                **{name: Target(server, requests) for name, requests in explained.items()},
                "digit": Target(server, digit_requests(digit_bundle, DIGITS)),
                "small digit": Target(small, digit_requests(lenet, LENET)),
                "chosen": Target(chosen, plain),
                "chosen large": Target(
                    chosen, [ClassifyRequest(model=MODEL, encoded=data) for data in enlarged]
                ),
            },
            batches=Batches.of(batches, lenet, LENET),
            floor_best=loops["floor"].run()["best"][: len(pictures)],
            classes=[target for _, _, target in photographs],
        )


def copy(photographs: ImageFolder, folder: Path) -> None:
    """Write the photographs into `folder` several times, in their order each time."""
    for number in range(COPIES):
        target = folder / str(number)
        target.mkdir(parents=True)
        for index, (_, path, _) in enumerate(photographs):
            shutil.copy(path, target / f"{index:05}.jpg")


def digit_requests(bundle: Path, model: str) -> list[ClassifyRequest]:
    """Return the digits that a bundle keeps, as requests."""
    return [ClassifyRequest.FromString(question.request) for question in digits(bundle, model)]


def measure(options: Options) -> dict[str, object]:
    """Alternate everything; return what it costs and how it compares."""
    load = os.getloadavg()[0]
    samples = Samples()
    with running(options) as bench, Progress(console=Console(stderr=True)) as progress:
        facts = bench.check()
        for number in progress.track(range(options.rounds + 1), description="rounds"):
            found = bench.round(options.seconds)
            if number > 0:  # the first round warms up
                samples.add(**found)
        highest = summary(samples.values["server at 32: rate"])["median"]
        tails = [
            bench.targets["server"].open(OPEN_SHARE * highest, 3 * options.seconds)
            for _ in range(OPEN_ROUNDS)
        ]
    return {
        "benchmark": "throughput",
        "model": MODEL,
        "photographs": len(bench.classes),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "chosen": facts,
        "measured": {name: summary(values) for name, values in samples.values.items()},
        "ratios": {
            "server / floor, CPU a request": samples.over("server at 32: cpu_ms", "floor: cpu_ms"),
            "server / floor, photographs a second": samples.over(
                "server at 32: rate", "floor: rate"
            ),
            "chosen / obvious, photographs a second": samples.over(
                "chosen at 32: rate", "obvious: rate"
            ),
            "chosen / obvious, photographs of 12 megapixels a second": samples.over(
                "chosen large at 32: rate", "obvious large: rate"
            ),
            "server alone / floor alone, p50": samples.over("server at 1: p50_ms", "alone: p50_ms"),
            "digit alone, convnet4, p50 in ms": summary(samples.values["digit at 1: p50_ms"]),
            "digit alone, LeNet-5, p50 in ms": summary(samples.values["small digit at 1: p50_ms"]),
            "digits a second in batches": summary(samples.values["small digits in batches: rate"]),
            "p99 / p50 at 70 %": summary(tails),
            "raw maps / plain, CPU a request": samples.over(
                "raw maps at 32: cpu_ms", "server at 32: cpu_ms"
            ),
            "overlays / plain, CPU a request": samples.over(
                "overlays at 32: cpu_ms", "server at 32: cpu_ms"
            ),
        },
        "targets": TARGETS,
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result: medians, and the range of the rounds."""
    measured, chosen = result["measured"], result["chosen"]
    targets = result["targets"]
    about = (
        f"{result['photographs']} photographs in turn, {result['rounds']} rounds of "
        f"{result['seconds']:g} s, on {result['machine']['cores']} cores of an "
        f"{result['machine']['processor']}; the load average before was "
        f"{result['load_average_before']:.1f}, where 0 is a machine that does nothing else. "
        f"By itself the server chose {chosen['variant']} in {chosen['backend']}: it agrees with "
        f"the obvious loop on {chosen['agreement with the obvious loop']:.0%} of the photographs "
        f"and has {chosen['top1']:.0%} right, where that loop has "
        f"{chosen['top1 of the obvious loop']:.0%}; on those of twelve megapixels they agree on "
        f"{chosen['agreement on photographs of 12 megapixels']:.0%}. "
        "Medians, and the range of the rounds:"
    )
    ratios = [
        [name, pages.middle(values, 0 if "a second in" in name else 2), targets.get(name, "")]
        for name, values in result["ratios"].items()
    ]
    names = [name.removesuffix(": rate") for name in measured if name.endswith(": rate")]
    costs = [
        [
            name,
            pages.middle(measured[f"{name}: rate"], 1),
            # A digit of a batch takes hundredths of a millisecond.
            pages.middle(measured[f"{name}: cpu_ms"], 3 if "batches" in name else 1),
        ]
        for name in names
    ]
    return "\n\n".join(
        [
            textwrap.fill(about, 100),
            pages.table(["ratio", "measured", "wanted"], ratios),
            pages.table(["", "a second", "CPU-ms each"], costs),
        ]
    )


def main() -> None:
    """Parse the command line, measure, and write the results."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    script.finish(measure(options), page_part, options)


if __name__ == "__main__":
    main()
