"""The metrics of several processes: counts add up, also of those that died, and gauges do not."""

from datetime import timedelta

import pytest

from foveate_serve.classification import Answer, Timing
from foveate_serve.errors import EngineError, EngineHungError, OverloadedError
from foveate_serve.observe.metrics import FiguresCollector
from foveate_serve.observer import BatchRun
from foveate_serve.statistics import Statistics

COLOURS = {"model": "colours", "version": "1"}


def timing(seconds: float, *, cached: bool = False) -> Timing:
    return Timing(
        decode=seconds,
        queue=seconds,
        infer=seconds,
        encode=seconds,
        total=4 * seconds,
        batch=1,
        batch_size=1,
        backend="onnxruntime",
        device="cpu",
        variant="fp32",
        cached=cached,
    )


def counted(*seconds: float, load: float = 1.0) -> Statistics:
    statistics = Statistics()
    statistics.on_load("colours", "1", load)
    for each in seconds:
        statistics.on_start("colours", "1")
        run = BatchRun(size=2, gather=0.25, infer=each, split=0.25, lane=1)
        statistics.on_batch("colours", "1", run)
        statistics.on_answer(Answer(model="colours", version="1", timing=timing(each)))
    return statistics


def samples(*processes: tuple[bool, Statistics]) -> dict:
    found = [(lives, statistics.figures.items()) for lives, statistics in processes]
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in FiguresCollector(lambda: found).collect()
        for sample in family.samples
    }


def value(found: dict, name: str, **labels: str) -> float:
    return found[(name, *sorted({**COLOURS, **labels}.items()))]


def test_a_histogram_counts_values_up_to_each_bound() -> None:
    found = samples((True, counted(0.001, 0.0011, 99.0)))
    for bound, count in (("0.0005", 0), ("0.001", 1), ("0.0025", 2), ("10.0", 2), ("+Inf", 3)):
        assert value(found, "foveate_infer_seconds_bucket", le=bound) == count
    assert value(found, "foveate_infer_seconds_count") == 3
    assert value(found, "foveate_infer_seconds_sum") == pytest.approx(99.0021)
    assert value(found, "foveate_batch_size_sum") == 6
    assert value(found, "foveate_engine_busy_seconds_total", lane="1") == pytest.approx(100.5021)


def test_counts_add_up_over_processes_and_gauges_are_of_those_that_live() -> None:
    living, dead = counted(0.001, load=2.0), counted(0.001, 0.001, load=3.0)
    for statistics in (living, dead):
        statistics.on_start("colours", "1")  # one that has not ended
        statistics.set("ready", "colours", "1", 1)
    both = samples((True, living), (True, dead))
    assert value(both, "foveate_requests_total", code="OK") == 3
    assert value(both, "foveate_requests_in_flight") == 2
    assert value(both, "foveate_model_ready") == 2
    assert value(both, "foveate_model_load_seconds") == 3
    one = samples((True, living), (False, dead))
    assert value(one, "foveate_requests_total", code="OK") == 3
    assert value(one, "foveate_queue_seconds_count") == 3
    assert value(one, "foveate_requests_in_flight") == 1
    assert value(one, "foveate_model_ready") == 1
    assert value(one, "foveate_model_load_seconds") == 2


def test_errors_of_one_code_are_one_series() -> None:
    statistics = Statistics()
    errors = (
        EngineError(),
        EngineHungError(),
        KeyError("unexpected"),
        OverloadedError("FULL", "", retry_delay=timedelta()),
    )
    for error in errors:
        statistics.on_start("colours", "1")
        statistics.on_failure("colours", "1", error, 0.5)
    found = samples((True, statistics))
    assert value(found, "foveate_requests_total", code="INTERNAL") == 3
    assert value(found, "foveate_requests_total", code="RESOURCE_EXHAUSTED") == 1
    assert statistics.of("colours", "1").failure.count == 4
    assert statistics.of("colours", "1").failure.seconds == 2


def test_an_answer_from_the_cache_has_no_stages() -> None:
    statistics = Statistics()
    statistics.on_start("colours", "1")
    cached = Answer(model="colours", version="1", timing=timing(0.001, cached=True))
    statistics.on_answer(cached)
    found = samples((True, statistics))
    assert value(found, "foveate_request_seconds_count") == 1
    assert not [key for key in found if key[0] == "foveate_infer_seconds_count"]


def test_reading_the_statistics_of_an_unknown_version_leaves_no_series() -> None:
    statistics = Statistics()
    assert statistics.of("colours", "9").success.count == 0
    assert samples((True, statistics)) == {}
