"""What the pages of one server show."""

from collections.abc import Sequence

from prometheus_client.registry import Collector

from foveate_serve.observe.metrics import Metrics
from foveate_serve.observe.pages import VersionRow
from foveate_serve.repository import Repository, State
from foveate_serve.rpc.server import Server


class ServerSource:
    """The models of `repository`, the metrics of `metrics`, the readiness of `server`."""

    def __init__(self, repository: Repository, metrics: Metrics, server: Server) -> None:
        self._repository = repository
        self._metrics = metrics
        self._server = server

    @property
    def is_ready(self) -> bool:
        """Whether requests are served."""
        return self._server.is_ready

    async def rows(self) -> Sequence[VersionRow]:
        """Return every version known, by model, the newest first."""
        return [
            VersionRow(
                model=model.name,
                version=status.version,
                state=status.state,
                reason=status.reason,
                default=status.version == model.default_version,
                runner=self._runner(model.name, status.version, status.state),
            )
            for model in self._repository.models()
            for status in model.versions
        ]

    async def metrics(self) -> Collector:
        """Return the metrics as they are now."""
        self._metrics.sample(self._repository)
        return self._metrics.registry

    def _runner(self, model: str, version: int, state: State) -> str:
        if state is not State.READY:
            return ""
        runner = self._repository.get(model, str(version)).runner
        return f"{runner.backend}, {runner.device}, {runner.variant}"
