"""What a request that asks for all that trust is costs a server, beside one that asks for nothing.

python -m benchmarks.trust_cost --fitted DIR [--repository DIR] [--images DIR]

The model is calibrated on the photographs of `--fitted`, in a repository of its own, so that
drift is watched as well. The request asks for confidence, a prediction set of `raps`, the
percentile and the policy; the other one is plain, to the same model without a calibration.
"""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks import pages, rounds, script
from benchmarks.check_cost import MODEL, send_all
from benchmarks.request_cost import read_pictures
from benchmarks.server import serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest, SetMethod, TrustOptions
from foveate_runtime.bundle.folder import find_version
from foveate_runtime.commands import calibrate
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "trust_cost.json"
PAGE = pages.DOCS / "trust.md"
WITH, WITHOUT = "with everything", "plain"
REQUESTS = 64
"""Of a turn: what is measured is a fiftieth of a photograph's time."""


def measure(repository: Path, fitted: Path, images: Path) -> dict[str, Any]:
    """Ask a calibrated model for everything and a plain one for nothing, in turn."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        source = find_version(repository, MODEL)
        with_trust, plain = folder / "trust" / MODEL / "1", folder / "plain" / MODEL / "1"
        for place in (with_trust, plain):
            shutil.copytree(source, place)
        policy = ["--abstain-above", "99", "--abstain-set-larger-than", "5"]
        assert calibrate.main([str(with_trust), "--data", str(fitted), *policy]) == 0
        shutil.rmtree(with_trust)
        everything = TrustOptions(set_method=SetMethod.SET_METHOD_RAPS)
        photograph = read_pictures(images)[0]
        turns = {}
        for way, place, trust in ((WITH, with_trust, everything), (WITHOUT, plain, None)):
            log = folder / f"{place.parents[1].name}.log"
            server = stack.enter_context(serving(place.parents[1], log=log))
            channel = stack.enter_context(grpc.insecure_channel(server.address))
            message = ClassifyRequest(model=MODEL, encoded=photograph, trust=trust)
            turns[way] = (server, partial(send_all, channel, message, REQUESTS))
        return rounds.measure("trust_cost", {"a photograph": (REQUESTS, turns)}, (WITH, WITHOUT))


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    fitted: Path = option("photographs to calibrate on")


def main() -> None:
    """Measure and write the result."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.fitted, options.images)
    script.finish(result, partial(rounds.page_part, ways=(WITH, WITHOUT)), options)


if __name__ == "__main__":
    main()
