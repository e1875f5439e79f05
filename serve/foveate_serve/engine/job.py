"""A request that has found its model and its plan: what the engine works on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.imaging.transform import View
from foveate_serve.batching.lane import Batched
from foveate_serve.classification import Answer, RawImage
from foveate_serve.errors import InvalidRequestError
from foveate_serve.repository.loaded import LoadedModel

A = TypeVar("A", bound=Answer)

Images: TypeAlias = Sequence[bytes | RawImage] | NDArray[np.uint8]
"""The pictures of a request, or the pixels of all, uint8 [n, height, width, channels]."""


@dataclass(slots=True, eq=False)
class Chunk:
    """Pictures of a request that were submitted together, and their share of a batch.

    Attributes:
        pixels: what the classifier saw, uint8 [n, height, width, channels].
        view: the part of the picture that it saw, where there is one picture.
        decode_seconds: the time from the start of the request until these were pixels.
        batched: the share of the batch.
        masked: the logits of the picture's masked copies, float32 [n, classes]; None for none.
    """

    pixels: NDArray[np.uint8]
    view: View
    decode_seconds: float
    batched: Batched
    masked: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class JobPlan(ABC, Generic[A]):
    """What a model computes for a request: a hashable value, equal where the work is the same.

    Attributes:
        outputs: the outputs of the graph that the answer needs.
        class_ids: for each picture, the classes whose maps are computed.
        draws: whether the answer contains drawn pictures.
        copies: how many masked copies of the picture run after it, for a request with one.
    """

    outputs: tuple[str, ...]
    class_ids: tuple[tuple[int, ...], ...]
    draws: bool = False
    copies: int = 0

    def locate(self, error: InvalidRequestError, picture: int) -> InvalidRequestError:  # noqa: ARG002 - of a request with one
        """Return the error of one picture with the field that the request has it in."""
        return error

    def mask(self, model: LoadedModel, chunk: Chunk) -> NDArray[np.uint8]:
        """Return the masked copies of the picture, uint8 [copies, height, width, channels]."""
        raise NotImplementedError

    @abstractmethod
    def draw(self, model: LoadedModel, chunks: Sequence[Chunk]) -> Callable[..., A]:
        """Return the answer but for its `timing`, the argument of what is returned."""


@dataclass(kw_only=True, slots=True, eq=False)
class Job(Generic[A]):
    """The work of one request.

    Attributes:
        model: the version that answers, in use until the job ends.
        plan: what it computes.
        images: the pictures.
        priority: from 1, the highest; 0 is the model's default.
        deadline: a time of `time.monotonic`; None is no deadline.
        key: the same for jobs that have the same answer; None until it is computed.
    """

    model: LoadedModel
    plan: JobPlan[A]
    images: Images
    priority: int
    deadline: float | None
    key: Hashable | None = None


class Answering(Protocol):
    """Answers jobs: the engine, and what is wrapped around it."""

    async def __call__(self, job: Job[A]) -> A:
        """Return the answer to a job; raises the errors of `foveate_serve.errors`."""
        ...
