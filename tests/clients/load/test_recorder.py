import sys

import numpy as np
import pytest

from foveate_client import MissingDistributionError
from foveate_client.load.recorder import Latencies, Measurement


def latencies(seconds):
    found = Latencies()
    for value in seconds:
        found.record(value)
    return found


@pytest.fixture
def seconds():
    return np.random.default_rng(2).lognormal(mean=-4, sigma=1, size=5000)


def test_percentiles_are_exact_to_three_digits(seconds):
    found = latencies(seconds)
    shares = [50, 90, 99, 99.9, 100]
    expected = [np.sort(seconds)[round(5000 * share / 100) - 1] for share in shares]
    assert list(found.percentiles(shares).values()) == pytest.approx(expected, rel=2e-3)
    assert found.mean == pytest.approx(seconds.mean(), rel=2e-3)
    assert found.maximum == pytest.approx(seconds.max(), abs=1e-6)
    assert found.minimum == pytest.approx(seconds.min(), abs=1e-6)


def test_latencies_add_up(seconds):
    found = latencies(seconds[:1000])
    found.add(latencies(seconds[1000:]))
    assert found.percentiles() == latencies(seconds).percentiles()
    assert len(found) == 5000


def test_what_is_too_short_or_too_long_counts_at_the_end():
    found = latencies([1e-9, 1e6])
    assert len(found) == 2
    assert found.minimum == 1e-6
    assert found.maximum == 3600


def test_measurements_add_up():
    found = Measurement(seconds=2.0, completed=10)
    other = Measurement(seconds=3.0, completed=30)
    other.record("plain", 0.1)
    other.errors["UNAVAILABLE"] += 3
    other.held_back = 2
    found.merge(other)
    found.merge(other)
    assert found.rate == 70 / 8
    assert found.requests == 8
    assert found.error_share == 6 / 8
    assert found.held_back == 4
    assert len(other.overall) == 1


def test_without_the_extra_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    with pytest.raises(MissingDistributionError, match=r"pip install 'foveate-client\[load\]'"):
        Latencies()
