"""Requests of the Open Inference Protocol that carry many digits each, and a client that checks."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from benchmarks.asking import TIMEOUT
from benchmarks.server import Server
from foveate.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import open_golden
from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DIGITS = 128
"""In a request."""
CONCURRENCY = 4

LIMITS = ("--max-batch", str(DIGITS), "--stream-window", str(DIGITS), "--max-queue", "1024")
"""What a server must be told that is to take such requests, and to run each at once."""


@dataclass(frozen=True)
class Batches:
    """A server and a request of many digits, with the best class of each."""

    server: Server
    request: bytes
    best: NDArray[np.int64]

    @classmethod
    def of(cls, server: Server, bundle: Path, model: str) -> "Batches":
        """Ask the server for the digits that a bundle keeps with torch's answers, in turn."""
        golden = open_golden(Bundle.open(bundle))
        assert golden is not None
        turns = np.arange(DIGITS) % len(golden.images)
        images = golden.images[turns]
        message = ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
        message.inputs.add(name=IMAGE_INPUT, datatype="UINT8", shape=images.shape)
        best = golden.outputs[LOGITS_OUTPUT].values[turns].argmax(axis=1)
        return cls(server, message.SerializeToString(), best)

    def closed(self, seconds: float) -> dict[str, float]:
        """Keep `CONCURRENCY` requests going; return the digits a second and the CPU-ms of each.

        Raises AssertionError where an answer is wrong.
        """
        return asyncio.run(self._closed(seconds))

    async def _closed(self, seconds: float) -> dict[str, float]:
        answered = 0
        async with grpc.aio.insecure_channel(self.server.address) as channel:
            call = channel.unary_unary(METHOD, response_deserializer=ModelInferResponse.FromString)
            begun, cpu = time.monotonic(), self.server.cpu_seconds()

            async def caller() -> None:
                nonlocal answered
                while time.monotonic() < begun + seconds:
                    answer = await call(self.request, timeout=TIMEOUT)
                    logits = np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)
                    found = logits.reshape(DIGITS, -1).argmax(axis=1)
                    assert np.array_equal(found, self.best), "wrong classes"
                    answered += DIGITS

            async with asyncio.TaskGroup() as callers:
                for _ in range(CONCURRENCY):
                    callers.create_task(caller())
            took, cpu = time.monotonic() - begun, self.server.cpu_seconds() - cpu
        return {"rate": answered / took, "cpu_ms": 1000 * cpu / answered}
