"""grpc.health.v1: of the server, of each service and of each model."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2 import HealthListRequest as ListRequest  # type: ignore[attr-defined]
from grpc_health.v1.health_pb2 import HealthListResponse as ListResponse  # type: ignore[attr-defined]

from foveate_serve.errors import NotFoundError
from foveate_serve.observer import Changes
from foveate_serve.repository.versions import ModelStatus
from foveate_serve.rpc.calls import Call

OVERALL = ""


# The stubs lack List, hence the ignored errors above.


class HealthHandler:
    """Health of the server (""), of each of `services`, and of each model.

    A model is called `<model_service>/<model>`. A model serves while `ready` is set and
    its default version is ready. The server and its services serve while `ready` is set
    and a model serves, or none has served yet; see `has_served`.
    `changes` wakes the watches.
    """

    def __init__(
        self,
        models: Callable[[], Sequence[ModelStatus]],
        changes: Changes,
        *,
        services: Sequence[str],
        model_service: str,
        hung: Callable[[], bool],
        has_served: Callable[[], bool],
    ) -> None:
        self._models = models
        self._changes = changes
        self._names = (OVERALL, *services)
        self._model_service = model_service
        self._hung = hung
        self._has_served = has_served
        self._ready = self._ended = False

    @property
    def ready(self) -> bool:
        """Whether the server reports SERVING."""
        if not self._ready or self._hung():
            return False
        serves = any(model.default_version is not None for model in self._models())
        return serves or not self._has_served()

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self._changes.on_change()

    def end_watches(self) -> None:
        """End the watches, after they have reported the last change."""
        self._ended = True
        self._changes.on_change()

    async def check(
        self, request: HealthCheckRequest, _: Call | None = None
    ) -> HealthCheckResponse:
        """Return one status."""
        status = self._statuses().get(request.service)
        if status is None:
            raise NotFoundError("SERVICE_NOT_FOUND", "no service of this name")
        return HealthCheckResponse(status=status)

    async def list(self, _request: ListRequest, _: Call | None = None) -> ListResponse:
        """Return every status."""
        return ListResponse(
            statuses={
                name: HealthCheckResponse(status=status)
                for name, status in self._statuses().items()
            }
        )

    async def watch(
        self, request: HealthCheckRequest, _: Call | None = None
    ) -> AsyncIterator[HealthCheckResponse]:
        """Return a status, and then each change of it."""
        last = None
        while True:
            changed = self._changes.next()
            status = self._statuses().get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield HealthCheckResponse(status=status)
            elif self._ended:
                return
            else:
                await changed.wait()

    def _statuses(self) -> Mapping[str, int]:
        statuses = dict.fromkeys(self._names, _status(self.ready))
        for model in self._models():
            serves = self._ready and model.default_version is not None
            statuses[f"{self._model_service}/{model.name}"] = _status(serves)
        return statuses


def _status(serves: bool) -> int:
    return HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING
