"""What /metrics tells: requests, and each model's queue and chunks."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from koir.serving.registry import Registry

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
GAUGES = {
    "queue_texts": ("Texts of requests that wait or are being computed", "texts"),
    "waiting_tokens": ("Tokens that wait for the device", "waiting_tokens"),
    "chunk_tokens": ("Padded tokens that go through the model at once", "chunk_tokens"),
}
COUNTERS = {
    "computed_texts": ("Distinct texts that went through the model", "done"),
    "chunks": ("Forwards", "chunks"),
    "tokens": ("Tokens in forwards", "tokens"),
    "padded_tokens": ("Tokens in forwards, padding included", "padded"),
    "device_seconds": ("Seconds in forwards", "seconds"),
    "memory_halvings": ("Times that memory ran out and the chunk was halved", "halved"),
}


class Meters:
    """Prometheus metrics of one application."""

    def __init__(self, registry: Registry):
        self.models, self.prometheus = registry, CollectorRegistry()
        labels = ["route", "status"]
        self.requests = Counter("koir_requests", "Requests answered", labels, registry=self.prometheus)
        self.seconds = Histogram(
            "koir_request_seconds", "Seconds to an answer", ["route"], buckets=SECONDS, registry=self.prometheus
        )
        self.truncated = Counter(
            "koir_truncated_texts", "Texts cut because they were too long", ["model"], registry=self.prometheus
        )
        ProcessCollector(registry=self.prometheus)
        self.prometheus.register(self)

    def collect(self) -> Iterator[Metric]:
        """What the batchers have counted, read when asked."""
        for table, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, (text, attribute) in table.items():
                metric = family(f"koir_{name}", text, labels=["kind", "model"])
                for served in self.models.batching:
                    metric.add_metric([served.kind, served.name], getattr(served.batcher, attribute))
                yield metric

    def page(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.prometheus)
