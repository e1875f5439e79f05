"""What grows is told from what moves."""

import os
import random

import pytest

from .steady import Sample, growth, leaks, take


def samples(count: int, a_sample: float = 0.0, files: float = 0.0) -> list[Sample]:
    """A server that warms up, moves by some mebibytes, and grows."""
    moves = random.Random(0)  # noqa: S311 - of a test
    return [
        Sample(
            mebibytes=200 + min(n, 20) * 5 + moves.uniform(-8, 8) + a_sample * n,
            files=int(40 + moves.randint(0, 6) + files * n),
            threads=30,
        )
        for n in range(count)
    ]


def test_what_moves_is_steady() -> None:
    assert leaks(samples(120)) == []
    assert growth(samples(120))["threads"] == 0


def test_what_grows_is_a_leak() -> None:
    (told,) = leaks(samples(120, a_sample=0.7))
    assert told.startswith("mebibytes grew by")
    (told,) = leaks(samples(120, files=0.3))
    assert told.startswith("files grew by")


def test_too_few_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="too few"):
        leaks(samples(12))


def test_a_process_is_sampled() -> None:
    found = take(os.getpid())
    assert found.mebibytes > 1
    assert found.files >= 1
    assert found.threads >= 1
