"""The content of the metrics port of one process."""

from collections.abc import Sequence

from prometheus_client.registry import Collector

from foveate.v1.model_pb2 import Batching
from foveate_serve.observe.metrics import Metrics
from foveate_serve.observe.pages import VersionRow
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.rpc.convert import from_policy
from foveate_serve.rpc.server import Server


class ServerSource:
    """The models of `repository`, the metrics of `metrics`, the readiness of `server`."""

    def __init__(self, repository: Repository, metrics: Metrics, server: Server) -> None:
        self._repository = repository
        self._metrics = metrics
        self._server = server

    async def is_ready(self) -> bool:
        """Return whether requests are served."""
        return self._server.is_ready

    @property
    def is_hung(self) -> bool:
        """Whether a run of an engine hangs."""
        return self._repository.hung

    async def rows(self) -> Sequence[VersionRow]:
        """Return every version known, by model, the newest first."""
        return [
            VersionRow(
                model=model.name,
                version=status.version,
                state=status.state,
                reason=status.reason,
                default=status.version == model.default_version,
                **self._runner(model.name, status.version, status.state),
            )
            for model in self._repository.models()
            for status in model.versions
        ]

    async def metrics(self) -> Collector:
        """Return the metrics as they are now."""
        self._metrics.sample(self._repository)
        return self._metrics.registry

    def _runner(self, model: str, version: int, state: State) -> dict[str, str]:
        if state is not State.READY:
            return {"runner": "", "batching": ""}
        loaded = self._repository.get(model, str(version))
        runner = loaded.runner
        return {
            "runner": f"{runner.backend}, {runner.device}, {runner.variant}",
            "batching": describe_batching(from_policy(loaded.batcher.policy)),
            "drift": _describe_drift(loaded),
        }


def _describe_drift(loaded: LoadedModel) -> str:
    """Return the largest stability index and what it is of; empty where nothing is known."""
    indices = {} if loaded.drift is None else loaded.drift.indices()
    figure = max(indices, key=lambda name: indices[name], default="")
    return f"{indices[figure]:.2f} ({figure.replace('_', ' ')})" if figure else ""


def describe_batching(batching: Batching) -> str:
    """Return a sentence on how a model's requests are batched."""
    parts = [f"up to {batching.max_batch} in a batch"]
    if batching.instances > 1:
        parts.insert(0, f"{batching.instances} instances")
    if batching.preferred_batches:
        parts.append(f"preferring {', '.join(map(str, batching.preferred_batches))}")
    if delay := batching.max_delay.ToTimedelta():
        parts.append(f"a delay of {1000 * delay.total_seconds():.1f} ms")
    parts.append(f"a queue of {batching.max_queue}")
    if batching.priorities > 1:
        parts.append(f"{batching.priorities} priorities")
    if batching.HasField("latency_objective"):
        objective = batching.latency_objective.ToTimedelta()
        parts.append(f"tuned for answers within {1000 * objective.total_seconds():g} ms")
    return ", ".join(parts)
