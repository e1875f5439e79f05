"""What it costs a server to try a map on masked copies of its picture, and to make one of them.

python -m benchmarks.check_cost --images DIR
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks import pages, rounds, script
from benchmarks.request_cost import read_pictures
from benchmarks.server import serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.explanation_pb2 import CamOptions

RESULTS = Path(__file__).parent / "results" / "check_cost.json"
PAGE = pages.DOCS / "trust.md"
MODEL = "efficientnet_lite0"
WITH, WITHOUT = "with copies", "without"
REQUESTS = 8
"""Of a turn."""


def send_all(channel: grpc.Channel, message: ClassifyRequest, count: int = REQUESTS) -> None:
    """Send the requests of a turn, one after another."""
    stub: Any = ClassifierServiceStub(channel)
    for _ in range(count):
        assert stub.Classify(message).predictions


def measure(repository: Path, images: Path) -> dict[str, Any]:
    """Ask with and without copies in turn; return what each request has cost."""
    with ExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory())) / "log"
        server = stack.enter_context(serving(repository, log=log))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        photograph = read_pictures(images)[0]

        def sending(cam: CamOptions | None) -> tuple[Any, Callable[[], None]]:
            message = ClassifyRequest(model=MODEL, encoded=photograph, cam=cam)
            return server, partial(send_all, channel, message)

        kinds = {
            f"a map, tried on {copies} copies": (
                REQUESTS,
                {
                    WITH: sending(CamOptions(top=1, check=copies)),
                    WITHOUT: sending(CamOptions(top=1)),
                },
            )
            for copies in (8, 16, 32)
        }
        occlusion = CamOptions(top=1, method="occlusion")
        kinds["a map by occlusion"] = (
            REQUESTS,
            {WITH: sending(occlusion), WITHOUT: sending(None)},
        )
        return rounds.measure("check_cost", kinds, (WITH, WITHOUT))


def main() -> None:
    """Measure and write the result."""
    options = script.parse(script.Photographs, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images)
    script.finish(result, partial(rounds.page_part, ways=(WITH, WITHOUT)), options)


if __name__ == "__main__":
    main()
