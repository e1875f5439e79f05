"""The application: its routes, and the description that is made from them."""

from google.rpc.code_pb2 import Code
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foveate_serve.errors import quote
from foveate_serve.rest.bodies import Bodies
from foveate_serve.rest.calls import Calls
from foveate_serve.rest.classify import Classify
from foveate_serve.rest.errors import error_response, failure
from foveate_serve.rest.open_inference import OpenInference
from foveate_serve.rest.openapi import describe
from foveate_serve.rest.routes import CLASSIFY, HIDDEN, OPEN_INFERENCE, Operation
from foveate_serve.rpc.server import Services
from foveate_serve.settings import Settings


def make_app(settings: Settings, services: Services) -> Starlette:
    """Return the application that answers with the handlers of gRPC."""
    bodies = Bodies(limit=settings.max_message_bytes, total=settings.max_request_bytes)
    calls = Calls(services, bodies, log=settings.log_requests)
    handlers = (
        (OpenInference(services.inference), (*OPEN_INFERENCE, *HIDDEN)),
        (Classify(services.classifier), CLASSIFY),
    )
    # Written once: every client may read it, without a token.
    description = JSONResponse(describe((*OPEN_INFERENCE, *CLASSIFY))).body

    async def openapi(_request: Request) -> Response:
        return Response(description, media_type=JSONResponse.media_type)

    routes = [Route("/openapi.json", openapi, methods=["GET"])]
    for handler, operations in handlers:
        routes += [_route(calls, handler, operation) for operation in operations]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refuse})


def _route(calls: Calls, handler: object, operation: Operation) -> Route:
    return Route(
        operation.path,
        calls.endpoint(
            operation.rpc,
            getattr(handler, operation.handler),
            takes_body=operation.method == "POST",
        ),
        methods=[operation.method],
    )


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer a request that has no route."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        status = failure(
            Code.UNIMPLEMENTED,
            "METHOD_NOT_ALLOWED",
            f"the path takes {allowed}, and not {quote(request.method)}",
        ).status
        response = error_response(status)
        response.headers["Allow"] = allowed
        return response
    return error_response(
        failure(
            Code.NOT_FOUND, "PATH_UNKNOWN", f"no path {quote(request.url.path)}; see /openapi.json"
        ).status
    )
