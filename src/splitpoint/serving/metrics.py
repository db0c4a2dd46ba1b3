"""Counters of one edge for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """In a registry of its own, so that two edges in one process do not mix."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        self.asked = Counter("splitpoint_requests", "accepted, by decision", ["decision"], registry=registry)
        self.refused = Counter("splitpoint_refused", "turned away because there was no room", registry=registry)
        self.over = Counter("splitpoint_over", "requests that are over, by how", ["how"], registry=registry)
        self.batch = Gauge("splitpoint_batch", "members of the step", registry=registry)
        self.waiting = Gauge("splitpoint_waiting", "who waits for the batch", registry=registry)
        steps = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
        self.step_s = Histogram("splitpoint_step_seconds", "one step", buckets=steps, registry=registry)
        self.total_s = Histogram(
            "splitpoint_total_seconds", "from asking to seeing", buckets=_SECONDS, registry=registry
        )
        shares = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3)
        self.error_share = Histogram(
            "splitpoint_prediction_error", "|predicted - measured| / measured", buckets=shares, registry=registry
        )

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
