"""The same numbers under the metric names that dashboards for NVIDIA Triton expect.

See Triton's docs/user_guide/metrics.md for their meaning.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_REASONS = {"RESOURCE_EXHAUSTED": "REJECTED", "CANCELLED": "CANCELED", "INTERNAL": "BACKEND"}
"""Triton's reason for a canonical code; it is OTHER for those that are not here."""


@dataclass(frozen=True)
class _Alias:
    """`name` is the sum of the samples called `sample`, times `factor`."""

    name: str
    text: str
    sample: str
    factor: float = 1.0


_ALIASES = (
    _Alias("nv_inference_count", "Pictures inferred.", "foveate_batch_size_sum"),
    _Alias("nv_inference_exec_count", "Batches run.", "foveate_batch_size_count"),
    _Alias(
        "nv_inference_pending_request_count",
        "Pictures in the queue.",
        "foveate_requests_waiting",
    ),
    _Alias(
        "nv_model_load_duration_secs",
        "Seconds of the last load.",
        "foveate_model_load_seconds",
    ),
    *(
        alias
        for theirs, ours in (("hit", "hits"), ("miss", "misses"))
        for alias in (
            _Alias(
                f"nv_cache_num_{ours}_per_model",
                "Lookups in the response cache.",
                f"foveate_cache_{ours}_total",
            ),
            _Alias(
                f"nv_cache_{theirs}_duration_per_model",
                "Microseconds of the lookups in the response cache.",
                f"foveate_cache_{ours}_seconds_total",
                1e6,
            ),
        )
    ),
    *(
        _Alias(
            f"nv_inference_{theirs}_duration_us",
            "Microseconds, summed over the requests that succeeded.",
            f"foveate_{ours}_seconds_sum",
            1e6,
        )
        for theirs, ours in (
            ("request", "request"),
            ("queue", "queue"),
            ("compute_input", "decode"),
            ("compute_infer", "infer"),
            ("compute_output", "encode"),
        )
    ),
)


class TritonNames(Collector):
    """The metrics of `source`, and after them the same numbers under Triton's names."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        metrics = list(self._source.collect())
        samples: dict[str, list[Sample]] = defaultdict(list)
        for metric in metrics:
            for sample in metric.samples:
                samples[sample.name].append(sample)
        return [*metrics, *_requests(samples["foveate_requests_total"]), *_aliases(samples)]


def _requests(samples: Iterable[Sample]) -> Iterable[Metric]:
    # Triton's counters lack the suffix _total, which the type counter demands.
    success = Metric("nv_inference_request_success", "Requests that succeeded.", "unknown")
    failure = Metric("nv_inference_request_failure", "Requests that failed.", "unknown")
    failures: dict[tuple[str, str, str], float] = defaultdict(float)
    for sample in samples:
        code = sample.labels["code"]
        labels = _labels(sample)
        if code == "OK":
            success.add_sample(success.name, labels, sample.value)
        else:
            reason = _REASONS.get(code, "OTHER")
            failures[labels["model"], labels["version"], reason] += sample.value
    for (model, version, reason), value in failures.items():
        labels = {"model": model, "version": version, "reason": reason}
        failure.add_sample(failure.name, labels, value)
    return success, failure


def _aliases(samples: Mapping[str, Iterable[Sample]]) -> Iterable[Metric]:
    for alias in _ALIASES:
        metric = Metric(alias.name, alias.text, "unknown")
        for sample in samples[alias.sample]:
            metric.add_sample(alias.name, _labels(sample), sample.value * alias.factor)
        yield metric


def _labels(sample: Sample) -> dict[str, str]:
    return {name: sample.labels[name] for name in ("model", "version")}
