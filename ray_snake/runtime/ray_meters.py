"""A run's figures as Ray's own metrics, which every machine of a cluster serves to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from ray_snake.runtime.metrics import METRICS


class RayMeters:
    """Hands figures to Ray; the machine that the process is on serves them with the prefix `ray_`.

    Args:
        run: The run's name, a label of all of them.
    """

    def __init__(self, run: str) -> None:
        self._own = {"run": run}
        self._meters: dict[str, Counter | Gauge] = {}

    def tell(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Set a gauge, or add to a counter."""
        if name not in self._meters:
            metric = METRICS[name]
            kind = Gauge if metric.kind == "gauge" else Counter
            self._meters[name] = kind(name, metric.text, ("run", *metric.tags))
        meter = self._meters[name]
        labels = {**self._own, **tags}
        if isinstance(meter, Gauge):
            meter.set(value, labels)
        elif value > 0:
            # Ray's counters take nothing else.
            meter.inc(value, labels)
