"""Which versions of models have metrics: those that there are, and for a while those gone."""

import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

FORGET_SECONDS = 900.0
"""For so long the counts of a version that is gone are shown: scrapers see the last of them."""

Version: TypeAlias = tuple[str, str]
"""The labels `model` and `version`."""


class Shown(Collector):
    """The metrics of `source` without those of versions that are gone.

    Their gauges go at once, as they have no value any more, and their counters
    and histograms after `FORGET_SECONDS`: pipelines publish versions for ever.
    """

    def __init__(self, source: Collector, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._known: frozenset[Version] = frozenset()
        self._seen: dict[Version, float] = {}

    def update(self, known: Iterable[Version]) -> list[Version]:
        """Take the versions that there are; return those that were forgotten with it."""
        now = self._clock()
        versions = frozenset(known)
        # What was refused unread has a model, and no version.
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
