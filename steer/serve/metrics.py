"""What a server tells Prometheus: counts and times, nothing of what anybody asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """The metrics of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, in_flight: Callable[[], int], edits: Callable[[], int]) -> None:
        """Set up.

        Args:
            in_flight: Answers that are being written or wait for it.
            edits: Different edits among them.
        """
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "steer_requests", "Requests", ("path", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "steer_request_seconds",
            "Seconds of a request, to its last byte",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "steer_first_token_seconds",
            "Seconds until an answer's first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "steer_prompt_tokens", "Prompt tokens read", registry=self._registry
        )
        self.answer_tokens = Counter(
            "steer_answer_tokens", "Answer tokens written", registry=self._registry
        )
        gauges = (
            ("steer_in_flight", "Answers that are being written or wait for it", in_flight),
            ("steer_edits_in_use", "Different edits that are being applied", edits),
        )
        for name, what, read in gauges:
            Gauge(name, what, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


class _Told(Collector):
    """Metrics that were told by others."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


def merged(pages: Mapping[str, bytes]) -> bytes:
    """What several servers tell as one page, in which a label `replica` tells them apart.

    Args:
        pages: Of `Metrics.text`, by the server's name.
    """
    families: dict[str, Metric] = {}
    for replica, page in sorted(pages.items()):
        for told in text_string_to_metric_families(page.decode()):
            known = families.setdefault(told.name, Metric(told.name, told.documentation, told.type))
            for sample in told.samples:
                known.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Told(families.values()))
    return generate_latest(registry)
