"""Has MLPerf's LoadGen ask the engine in a process, or a server over gRPC, and judge the run.

LoadGen decides when which picture is asked for, measures the answers and says
whether the run counts by its rules: it lasted long enough and had queries
enough for its percentile, and in the scenario Server so many of the answers
came within the bound. As MLPerf has it, pictures are decoded and in memory
before the measuring begins.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveate_bench.results import Amount, Configuration, Record
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import Positive

Target = Literal["engine", "server"]
"""What is asked: the server's engine in LoadGen's own process, or `foveate serve` over gRPC."""

TARGETS: tuple[Target, ...] = ("engine", "server")

LOG_FOLDER = "loadgen"
DETAIL_FILE = "mlperf_log_detail.txt"
_MARK = ":::MLLOG "

_SETTINGS = "FOVEATE_SERVE_"
"""The prefix of the variables that configure a server."""

_SERVE = "import sys; from foveate_serve.cli import main; sys.exit(main(sys.argv[1:]))"


class Scenario(Enum):
    """How LoadGen asks: see MLPerf's inference rules."""

    SINGLE_STREAM = "SingleStream"
    MULTI_STREAM = "MultiStream"
    SERVER = "Server"
    OFFLINE = "Offline"


MIN_QUERIES = {
    Scenario.SINGLE_STREAM: 100,
    # With fewer the early stopping rule has no estimate of the 99th percentile.
    Scenario.MULTI_STREAM: 662,
    Scenario.SERVER: 662,
    Scenario.OFFLINE: 1,
}
"""The least queries that LoadGen's rules take for a valid run."""


class LoadGenError(Exception):
    """LoadGen cannot run; the message says why."""


class Rules(Record):
    """The settings of LoadGen.

    Attributes:
        seconds: the least time of a scenario: 10 is LoadGen's own default, and
            600 what MLPerf asks of a submission.
        queries: the least queries; None takes `MIN_QUERIES`.
        samples_per_query: the pictures of a query of MultiStream.
        target_latency_ms: within which 99 of 100 queries of Server must be
            answered.
        target_qps: the queries a second of Server; None takes a share of what
            was done in a trial before.
        max_batch: the largest batch that the engine forms.
    """

    seconds: Amount = 10.0
    queries: Positive | None = None
    samples_per_query: Positive = 8
    target_latency_ms: Amount = 100.0
    target_qps: Amount | None = None
    max_batch: Positive = 8


class LoadGenResult(Record):
    """What LoadGen found in one scenario.

    Attributes:
        configuration: what answered.
        target: where it answered.
        scenario: how it was asked.
        metric: what the scenario is judged by, and `value` how much in `unit`.
        valid: LoadGen's verdict; False also where answers failed.
        reasons: why the run is not valid.
        queries: how many LoadGen made.
        failures: the pictures that were not classified.
        mean_ms, p50_ms, p90_ms, p99_ms: the latency of a picture, of a query in
            MultiStream.
        target_qps, target_latency_ms: what Server was to hold.
        version: LoadGen's.
        log: the folder with LoadGen's own files, from the results' folder.
    """

    configuration: Configuration
    target: Target
    scenario: Scenario
    metric: str
    value: Amount
    unit: str
    valid: bool
    reasons: tuple[str, ...] = ()
    queries: Positive
    failures: int = 0
    mean_ms: Amount
    p50_ms: Amount
    p90_ms: Amount
    p99_ms: Amount
    target_qps: Amount | None = None
    target_latency_ms: Amount | None = None
    version: str
    log: str


class Job(Record):
    """The task of the process with LoadGen, as a file of JSON.

    `address` is the server's; without one the engine is run from `settings`.
    `pictures` is a file of numpy: uint8 [N, H, W, C]. `log` is a folder.
    """

    model: str
    settings: dict[str, Any]
    address: str | None
    pictures: Path
    scenario: Scenario
    rules: Rules
    log: Path


class Outcome(Record):
    """What that process answers: `failures`, the first of them in words, and what was aimed at."""

    failures: int
    failure: str = ""
    target_qps: float | None = None


def require() -> None:
    """Raise LoadGenError where LoadGen is not installed."""
    if find_spec("mlperf_loadgen") is None:
        raise LoadGenError('LoadGen is not installed: pip install "foveate-bench[loadgen]"')


def run(
    bundle: Bundle,
    configuration: Configuration,
    images: NDArray[np.uint8],
    *,
    scenarios: Sequence[Scenario],
    rules: Rules,
    out: Path,
    targets: Sequence[Target] = TARGETS,
) -> Iterator[LoadGenResult]:
    """Run the scenarios, first in the process and then over the network; yield each result.

    `images`, uint8 [N, H, W, C], are the pictures that are asked for. LoadGen's
    files are kept in `out/loadgen`. Raises LoadGenError.
    """
    require()
    with TemporaryDirectory(prefix="foveate-loadgen-") as name:
        folder = Path(name)
        np.save(folder / "pictures.npy", images)
        settings = _settings(folder / "repository", bundle, configuration, rules)
        for target in targets:
            with _address(target, settings) as address:
                for scenario in scenarios:
                    log = _log_folder(out, configuration, target, scenario)
                    job = Job(
                        model=configuration.model,
                        settings=settings,
                        address=address,
                        pictures=folder / "pictures.npy",
                        scenario=scenario,
                        rules=rules,
                        log=log,
                    )
                    outcome = _run_job(job, folder)
                    yield _result(job, outcome, configuration, target, out)


def read_log(path: Path) -> dict[str, Any]:
    """Return what LoadGen noted in its detailed log, by key; raises LoadGenError.

    Each of its lines is a mark and an object of JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LoadGenError(f"LoadGen left no {path.name}: {error.strerror}") from error
    notes = [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
    return {note["key"]: note["value"] for note in notes}


def _settings(
    repository: Path, bundle: Bundle, configuration: Configuration, rules: Rules
) -> dict[str, Any]:
    """Return the settings of a server of this one configuration."""
    # Other models and versions of the repository would share the machine.
    link = repository / configuration.model / str(configuration.version)
    link.parent.mkdir(parents=True)
    link.symlink_to(bundle.path, target_is_directory=True)
    return {
        "repository": str(repository),
        "variant": configuration.variant,
        "backend": configuration.backend,
        "device": configuration.device,
        "engine_threads": configuration.threads,
        "max_batch": rules.max_batch,
        "log_level": "error",
    }


@contextmanager
def _address(target: Target, settings: dict[str, Any]) -> Iterator[str | None]:
    """Serve where the target is a server, and yield its address."""
    if target == "engine":
        yield None
        return
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    with subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-c", _SERVE, *flags, "--address=127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise LoadGenError(f"the server ended with {process.wait()} before it was ready")
            yield line.split()[-1]
        finally:
            process.terminate()


def _environment() -> dict[str, str]:
    """Return the environment without settings of the server, which would change what is run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}


def _log_folder(
    out: Path, configuration: Configuration, target: Target, scenario: Scenario
) -> Path:
    c = configuration
    name = f"{c.model}-{c.variant}-{c.backend}-{c.device.replace(':', '')}-{c.threads}"
    folder = out / LOG_FOLDER / name / target / scenario.value
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run_job(job: Job, folder: Path) -> Outcome:
    """Run LoadGen in a process of its own: while it runs, Python does not handle Ctrl-C."""
    file = folder / "job.json"
    file.write_text(job.model_dump_json(), encoding="utf-8")
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-m", "foveate_bench.loadgen_process", file],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise LoadGenError(f"{job.scenario.value}: LoadGen's process failed: {last}")
    return Outcome.model_validate_json(done.stdout.splitlines()[-1])


def _result(
    job: Job, outcome: Outcome, configuration: Configuration, target: Target, out: Path
) -> LoadGenResult:
    notes = read_log(job.log / DETAIL_FILE)
    metric, key, scale, unit = _METRICS[job.scenario]
    # The queries of MultiStream are what is judged, not their pictures.
    of = "per_query_" if job.scenario is Scenario.MULTI_STREAM else ""
    broken = reasons(notes, outcome)
    server = job.scenario is Scenario.SERVER
    return LoadGenResult(
        configuration=configuration,
        target=target,
        scenario=job.scenario,
        metric=metric,
        value=scale * notes[key],
        unit=unit,
        valid=notes["result_validity"] == "VALID" and not outcome.failures,
        reasons=broken,
        queries=notes["result_query_count"],
        failures=outcome.failures,
        mean_ms=1e-6 * notes[f"result_mean_{'query_' if of else ''}latency_ns"],
        **{
            f"p{percentile}_ms": 1e-6 * notes[f"result_{percentile}.00_percentile_{of}latency_ns"]
            for percentile in (50, 90, 99)
        },
        target_qps=outcome.target_qps if server else None,
        target_latency_ms=job.rules.target_latency_ms if server else None,
        version=str(notes["loadgen_version"]),
        log=str(job.log.relative_to(out)),
    )


_METRICS = {
    Scenario.SINGLE_STREAM: (
        "90th percentile of latency",
        "result_90.00_percentile_latency_ns",
        1e-6,
        "ms",
    ),
    Scenario.MULTI_STREAM: (
        "99th percentile of a query's latency",
        "result_99.00_percentile_per_query_latency_ns",
        1e-6,
        "ms",
    ),
    Scenario.SERVER: ("completed", "result_completed_samples_per_sec", 1.0, "pictures/s"),
    Scenario.OFFLINE: ("throughput", "result_samples_per_second", 1.0, "pictures/s"),
}
"""What each scenario is judged by: its name, LoadGen's key, the factor to the unit, the unit."""


def reasons(notes: dict[str, Any], outcome: Outcome) -> tuple[str, ...]:
    """Return why a run does not count: the rules that it broke, and LoadGen's own words."""
    rules = {
        "result_perf_constraints_met": "too many queries took longer than the bound",
        "result_min_duration_met": "it ended before the least time",
        "result_min_queries_met": "it had too few queries",
        "early_stopping_met": "too few queries for its percentile",
    }
    broken = [text for key, text in rules.items() if notes.get(key) is False]
    said = str(notes.get("result_invalid_reason", "")).strip()
    if said:
        broken.append(f"LoadGen: {said}")
    if outcome.failures:
        broken.append(f"{outcome.failures} pictures were not classified: {outcome.failure}")
    return tuple(broken)
