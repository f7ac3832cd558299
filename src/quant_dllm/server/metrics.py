"""What ``/metrics`` tells, in Prometheus' form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "quant_dllm_requests", "Requests, by route and status.", ("route", "status"),
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "quant_dllm_request_seconds",
            "Time until an answer is whole, or a stream begins.", ("route",),
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300), registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "quant_dllm_drafts", "Answers that are written or wait for it.", registry=registry
        )
        self.tokens = Counter("quant_dllm_tokens", "Tokens of finished answers.", registry=registry)
        self.calls = Counter("quant_dllm_model_calls", "Calls of the model.", registry=registry)
        self.cancelled = Counter(
            "quant_dllm_cancelled", "Answers given up: client gone, stop text, or too slow.",
            registry=registry,
        )  # fmt: skip

    def page(self) -> bytes:
        """Write them all."""
        return generate_latest(self.registry)
