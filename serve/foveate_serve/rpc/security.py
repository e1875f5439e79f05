"""The permission that each method needs."""

from collections.abc import Mapping

import grpc

from foveate_serve.access import AccessControl, Permission
from foveate_serve.log_context import CALLER

OPEN = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ModelReady",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
"""The methods without a permission: probes carry no tokens."""

SERVICES: Mapping[str, Permission] = {
    "foveate.v1.ClassifierService": Permission.INFER,
    "inference.GRPCInferenceService": Permission.INFER,
    "grpc.reflection.v1alpha.ServerReflection": Permission.INFER,
}
"""The permission for the methods of a service; any other service needs ADMIN."""

METHODS: Mapping[str, Permission] = {
    "/inference.GRPCInferenceService/RepositoryModelLoad": Permission.ADMIN,
    "/inference.GRPCInferenceService/RepositoryModelUnload": Permission.ADMIN,
}
"""The methods that need another permission than their service."""


def permission_of(method: str) -> Permission | None:
    """Return the permission for a method such as "/package.Service/Method"; None for none."""
    if method in OPEN:
        return None
    service = method.strip("/").rpartition("/")[0]
    return METHODS.get(method) or SERVICES.get(service, Permission.ADMIN)


class AccessGate:
    """Refuses calls whose token is missing, unknown or without the permission."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    def __call__(self, call: grpc.HandlerCallDetails) -> None:
        """Check a call; raises UnauthenticatedError and ForbiddenError."""
        permission = permission_of(call.method)
        if permission is not None:
            header = dict(call.invocation_metadata or ()).get("authorization")
            text = header.decode("latin-1") if isinstance(header, bytes) else header
            # Not reset: the context belongs to the call's task and ends with it.
            CALLER.set(self._access.check(text, permission))
