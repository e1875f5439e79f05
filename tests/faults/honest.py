"""A client that asks for known pictures all the while, and keeps what it saw."""

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from PIL import Image
from skimage import data

from foveate_client import CallError, Client, Retries

from ..encoding import encoded
from ..waiting import wait_until

_GOOD_IN_A_ROW = 20
_TIMEOUT_SECONDS = 5.0


def pictures() -> list[bytes]:
    """Return photographs whose best scores differ, so that no answer passes for another's."""
    arrays = (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())
    return [
        encoded(picture.resize((256, 256)), "JPEG")
        for whole in map(Image.fromarray, arrays)
        for picture in (whole, whole.rotate(90, expand=True))
    ]


@dataclass(frozen=True)
class Call:
    """One call: when it ended, and its code, `OK`, or `WRONG` for another picture's answer."""

    ended: float
    code: str


class Honest:
    """Asks for one picture after another from `threads` threads, each call tried `attempts` times.

    What each picture's answer is, it is told by the server before anything breaks.
    """

    def __init__(self, address: str, model: str, *, threads: int = 2, attempts: int = 1) -> None:
        self._client = Client(address, retries=Retries(attempts=attempts))
        self._model = model
        self._pictures = pictures()
        self._expected = [self._ask(picture) for picture in self._pictures]
        assert not any(itertools.starmap(_same, itertools.combinations(self._expected, 2)))
        self._calls: list[Call] = []
        self._broken: float | None = None
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number,)) for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.settle()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def breaks(self) -> None:
        """Say that what is to break breaks now: calls from here on are counted."""
        self._broken = time.monotonic()

    def settle(self) -> None:
        """Wait until calls succeed one after another."""
        start = len(self._calls)

        def settled() -> bool:
            last = self._calls[start:][-_GOOD_IN_A_ROW:]
            return len(last) == _GOOD_IN_A_ROW and all(call.code == "OK" for call in last)

        wait_until(settled, told=lambda: f"calls go on failing: {self.codes()}")

    def hold(self, seconds: float) -> None:
        """Go on asking for so long, while what is broken stays broken."""
        self._ending.wait(seconds)

    def ask_unlucky(self) -> str:
        """Ask for a picture that is one colour, 13 of 255; return the code."""
        unlucky = encoded(Image.new("RGB", (224, 224), (13, 13, 13)))
        try:
            self._client.classify(unlucky, model=self._model, timeout=_TIMEOUT_SECONDS)
        except CallError as error:
            return error.code
        return "OK"

    def version(self) -> str:
        """Return the version that answers now."""
        return str(self._client.classify(self._pictures[0], model=self._model).version)

    def codes(self) -> dict[str, int]:
        """Return the calls since it broke by their codes."""
        since = self._broken or 0.0
        return dict(Counter(call.code for call in list(self._calls) if call.ended >= since))

    def recovery_seconds(self) -> float:
        """Return the time from the break to the last call that failed; 0 where none did."""
        since = self._broken or 0.0
        failed = [c.ended for c in list(self._calls) if c.ended >= since and c.code != "OK"]
        return failed[-1] - since if failed else 0.0

    def _work(self, number: int) -> None:
        index = number
        while not self._ending.is_set():
            index = (index + 1) % len(self._pictures)
            code = self._code(index)
            self._calls.append(Call(time.monotonic(), code))
            if code != "OK":
                time.sleep(0.02)  # as a caller's own pause before it tries again

    def _code(self, index: int) -> str:
        try:
            answer = self._ask(self._pictures[index])
        except CallError as error:
            return error.code
        return "OK" if _same(answer, self._expected[index]) else "WRONG"

    def _ask(self, picture: bytes) -> tuple[int, float]:
        answer = self._client.classify(
            picture, model=self._model, top_k=1, timeout=_TIMEOUT_SECONDS
        )
        best = answer.predictions[0]
        return best.class_id, best.score


def _same(one: tuple[int, float], other: tuple[int, float]) -> bool:
    """Return whether two answers are of one picture: scores differ a little from batch to batch."""
    return one[0] == other[0] and abs(one[1] - other[1]) < 2e-3
