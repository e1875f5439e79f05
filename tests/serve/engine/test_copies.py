"""Pixels are copied into the batch that they run in, and a lone picture's are not."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from foveate_runtime.backends.base import Array
from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import IMAGE_INPUT
from foveate_serve.batching.batcher import Batcher
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import RawImage
from foveate_serve.engine.pictures import _pixels


class Noting(OnnxRuntimeRunner):
    """ONNX Runtime, keeping the pictures that it was given."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, variant="fp32", device="cpu", threads=1)
        self.given: list[np.ndarray] = []

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.given.append(inputs[IMAGE_INPUT])
        return super()._run(inputs, outputs)


@pytest.fixture
def pictures(colours: Bundle) -> list[np.ndarray]:
    data = [bytes([value] * 192) for value in range(4)]
    raws = [RawImage(height=8, width=8, channels=3, data=pixels) for pixels in data]
    found = [_pixels(raw, colours.manifest.input) for raw in raws]
    for pixels, picture in zip(data, found, strict=True):
        assert np.shares_memory(picture, np.frombuffer(pixels, dtype=np.uint8))
    return found


async def submit(batcher: Batcher, *pictures: np.ndarray) -> None:
    with batcher.reserve(len(pictures)) as reservation:
        runs = (batcher.submit(reservation, picture, outputs=("logits",)) for picture in pictures)
        await asyncio.gather(*runs)


async def test_a_lone_picture_reaches_the_engine_where_the_request_has_put_it(
    colours: Bundle, pictures: list[np.ndarray]
) -> None:
    with Noting(colours) as runner:
        batcher = Batcher([runner], BatchPolicy(lanes=1))
        await submit(batcher, pictures[0])
        await batcher.close()
        assert np.shares_memory(runner.given[0], pictures[0])


async def test_pictures_that_come_together_reach_the_engine_where_they_are(
    colours: Bundle, pictures: list[np.ndarray]
) -> None:
    together = np.concatenate(pictures)
    with Noting(colours) as runner:
        batcher = Batcher([runner], BatchPolicy(lanes=1))
        with batcher.reserve(len(together)) as reservation:
            await batcher.submit(
                reservation, together, outputs=("logits",), class_ids=[()] * len(together)
            )
        await batcher.close()
        assert np.shares_memory(runner.given[0], together)
        assert len(runner.given[0]) == len(together)


async def test_batches_are_gathered_in_one_buffer_again_and_again(
    colours: Bundle, pictures: list[np.ndarray]
) -> None:
    with Noting(colours) as runner:
        batcher = Batcher([runner], BatchPolicy(max_batch=2, max_delay=60.0, lanes=1))
        await submit(batcher, *pictures[:2])
        await submit(batcher, *pictures[2:])
        await batcher.close()
        first, second = runner.given
        assert np.shares_memory(first, second)
        assert not any(np.shares_memory(second, picture) for picture in pictures)
        assert [int(picture[0, 0, 0]) for picture in second] == [2, 3]
