"""What Prometheus would read of a run while it goes on: from a machine of a real cluster."""

import re
import urllib.request

import ray
from scenarios import CONFIG, NODES, VISITS, fit, until

from ray_snake.runtime.events import VisitDecided

LOOK_AT = VISITS // 2
LINE = re.compile(r"^ray_(snake_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def read_metrics(run):
    """Return the figures of a run on all machines, by name and those labels that are ours."""
    found = {}
    for machine in (one for one in ray.nodes() if one["Alive"]):
        url = f"http://{machine['NodeManagerAddress']}:{machine['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for name, labels, value in LINE.findall(text):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if tags["run"] == run:
                own = (tags[one] for one in ("node", "result", "phase", "rows") if one in tags)
                found[(name, *own)] = float(value)
    return found


def decided(found):
    """Return the visits that were decided by node."""
    return [value for key, value in found.items() if key[0] == "snake_visits_decided_total"]


def test_a_cluster_serves_a_runs_figures_while_it_goes_on(raylets, tmp_path):
    seen = {}

    def serves():
        seen.update(read_metrics("run"))
        return min(seen.get(("snake_visits",), 0), sum(decided(seen))) >= LOOK_AT

    def look(event):
        if isinstance(event, VisitDecided) and event.record.visit == LOOK_AT:
            until(serves, "its figures are served")

    fit(CONFIG, tmp_path, on_event=look)
    assert seen["snake_visits_planned",] == VISITS
    assert seen["snake_nodes",] == NODES
    assert len(decided(seen)) == NODES
    trained = {key[1] for key in seen if key[0] == "snake_visit_seconds_total"}
    assert len(trained) == NODES
    assert 0 < seen["snake_accuracy", "test"] <= 1
