"""Limits metrics to the versions that exist, and for a while those that are gone."""

import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

FORGET_SECONDS = 900.0
"""How long the counts of a version that is gone are shown, so that scrapers see the last."""

Version: TypeAlias = tuple[str, str]
"""The labels `model` and `version`."""


class KnownVersions(Collector):
    """The metrics of `source` without those of versions that are gone.

    Their gauges are removed at once, as they have no value any more, and their counters
    and histograms after `FORGET_SECONDS`: their number would otherwise grow without
    bound, as pipelines publish new versions.
    """

    def __init__(self, source: Collector, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._known: frozenset[Version] = frozenset()
        self._seen: dict[Version, float] = {}

    def update(self, known: Iterable[Version]) -> list[Version]:
        """Set the versions that exist; return those whose metrics are now removed."""
        now = self._clock()
        versions = frozenset(known)
        # A request that was refused unread has a model and no version.
        self._known = versions | {(model, "") for model, _ in versions}
        self._seen |= dict.fromkeys(self._known, now)
        forgotten = [gone for gone, at in self._seen.items() if now - at >= FORGET_SECONDS]
        for version in forgotten:
            del self._seen[version]
        return forgotten

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        for metric in self._source.collect():
            shown = self._known if metric.type == "gauge" else self._seen.keys()
            metric.samples = [
                sample
                for sample in metric.samples
                # The model is empty where none was found.
                if not sample.labels.get("model")
                or (sample.labels["model"], sample.labels["version"]) in shown
            ]
            yield metric
