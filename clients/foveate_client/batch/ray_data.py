"""Classifies pictures by Ray Data: the same answers, from workers on one machine or many.

Ray starts the workers, restarts those that died, and gives their pictures to others. The
driver, which is the process of the command, reads the sources and writes the journal
and the files.
"""

import hashlib
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from foveate_client._client import Client
from foveate_client._exceptions import FoveateError, MissingDistributionError
from foveate_client._models import Model
from foveate_client._options import ClassifyOptions
from foveate_client.batch.arrow import pyarrow
from foveate_client.batch.stream import Answered, Answers, Task, classify_tasks

REQUIREMENT = "foveate-client[ray]"

GROUP = 2**20
GROUP_BYTES = 4 * 2**30
"""The most pictures, or bytes of shards and tables, of one data set of Ray.

Its workers are restarted for the next one, so that the driver's memory is bounded."""

_BLOCK = 4
"""A block has so many times `in_flight` pictures: it is retried as a whole if its worker dies."""

_CONNECT_SECONDS = 10.0

RETRIES = 3
"""How often a block is retried after its worker died: one of its pictures may be the cause."""


class RayError(FoveateError):
    """Ray cannot be reached, has no place for a worker, or failed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The task of every worker.

    `connect` makes its client, in the folder `folder`, so that relative paths are those of
    the driver; the model there must be that of `identity`. `options`, `in_flight` and
    `patience` are those of `classify_tasks`.
    """

    connect: Callable[[], Client]
    folder: Path
    identity: str
    options: ClassifyOptions
    in_flight: int
    patience: float


class Worker:
    """Answers blocks of tasks in a process that Ray started, which is an actor."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._client: Client | None = None

    def __call__(self, block: Any) -> Iterator[Any]:
        """Yield an Arrow table with the pickled answer of each pickled task of a table.

        The last one is the error that ended the run, where there was one.
        """
        tasks = [pickle.loads(x) for x in block["task"].to_pylist()]  # noqa: S301 - the driver's
        job = self._job
        try:
            client = self._opened()
            answers = classify_tasks(
                client, tasks, job.options, in_flight=job.in_flight, patience=job.patience
            )
            with closing(answers):
                for answered in answers:
                    yield _table("answer", [answered])
        except FoveateError as error:
            yield _table("answer", [error])

    def _opened(self) -> Client:
        if self._client is None:
            job = self._job
            try:
                os.chdir(job.folder)
            except OSError as error:
                raise RayError(
                    f"the worker on {socket.gethostname()} cannot enter {job.folder}, where the "
                    f"command was given: {error.strerror}"
                ) from error
            client = job.connect()
            name, version = job.options["model"], job.options["version"]
            if identity(client.model(name, version)) != job.identity:
                client.close()
                raise RayError(
                    f"{name}, version {version}, is another model on {socket.gethostname()} than "
                    "where the command was given"
                )
            self._client = client
        return self._client


def ray() -> Any:
    """Import and return Ray with Ray Data. Raises MissingDistributionError."""
    # Ray sends no usage report, unless the user's environment enables it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray as module  # noqa: PLC0415 - an extra of this distribution
        import ray.data  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDistributionError("--engine ray", REQUIREMENT) from error
    return module


@contextmanager
def ray_answers(job: Job, *, address: str | None, workers: int | None) -> Iterator[Answers]:
    """Give what answers tasks as `classify_tasks` does, in any order, by workers of Ray.

    `address` is a cluster's HOST:PORT; None takes the one that Ray finds, or starts one on
    this machine. None for `workers` means one for each node. Raises RayError.
    """
    module = ray()
    # Ray prints messages about its workers on stdout, which is for the summary.
    with redirect_stdout(sys.stderr):
        try:
            if address is not None:
                _require_open(address)
            module.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray raises it itself where its node starts too slowly
            place = "Ray cannot be started" if address is None else f"no Ray cluster at {address}"
            raise RayError(f"{place}: {_in_a_line(error)}") from error
        try:
            context = module.data.DataContext.get_current()
            context.enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            if module.available_resources().get("CPU", 0) < 1:
                raise RayError("the Ray cluster has no free CPU for a worker")
            nodes = sum(x["Alive"] and x["Resources"].get("CPU", 0) >= 1 for x in module.nodes())
            yield partial(_answers, module, job, workers or max(nodes, 1))
        finally:
            module.shutdown()


def _require_open(address: str) -> None:
    """Raise OSError or ValueError where nothing listens: Ray waits for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def _answers(
    module: Any, job: Job, workers: int, tasks: Iterable[Task]
) -> Generator[Answered, None, None]:
    source = iter(tasks)
    while True:
        left: set[int] = set()
        blocks = [
            module.put(_table("task", block)) for block in _blocks(source, left, job.in_flight)
        ]
        if not blocks:
            return
        with warnings.catch_warnings():
            # Ray warns of max_task_retries; without it, a picture that kills its worker would
            # be tried for ever.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = module.data.from_arrow_refs(blocks).map_batches(
                Worker,
                fn_constructor_args=(job,),
                batch_size=None,
                batch_format="pyarrow",
                compute=module.data.ActorPoolStrategy(size=min(workers, len(blocks))),
                num_cpus=1,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
        del blocks
        try:
            with closing(iter(dataset.iter_rows())) as rows:
                for row in rows:
                    found = pickle.loads(row["answer"])  # noqa: S301 - our own workers'
                    if isinstance(found, FoveateError):
                        raise found
                    task, _ = found
                    # A block that was answered again after a worker's death counts once.
                    if task.position in left:
                        left.remove(task.position)
                        yield found
        except (module.exceptions.RayError, module.data.exceptions.SystemException) as error:
            raise RayError(f"Ray failed: {_in_a_line(error)}") from error
        if left:
            raise RayError(f"Ray lost the answers of {len(left):,} pictures")


def _blocks(source: Iterator[Task], left: set[int], in_flight: int) -> Iterator[list[Task]]:
    """Yield one group's tasks in blocks, and note their positions in `left`."""
    size = 0
    while len(left) < GROUP and size < GROUP_BYTES:
        if not (block := list(islice(source, _BLOCK * in_flight))):
            return
        left.update(task.position for task in block)
        size += sum(len(x.item.image) for x in block if isinstance(x.item.image, bytes))
        yield block


def _table(column: str, values: Iterable[object]) -> Any:
    """Return an Arrow table of one column with the pickled values."""
    pa = pyarrow()
    return pa.table({column: pa.array(map(pickle.dumps, values), pa.large_binary())})


def identity(model: Model) -> str:
    """Return a digest that identifies a model among those of its name and version."""
    told = (model.created, model.classifier, model.labels, model.input, model.active_variant)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _in_a_line(error: BaseException) -> str:
    """Return the first line of an error, and the last, where a traceback has its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys(lines[:1] + lines[-1:])) or type(error).__name__
