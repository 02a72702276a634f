"""What Prometheus would read of a run while it goes on: from a machine of a real cluster."""

import re
import urllib.request

import ray
from scenarios import CONFIG, NODES, VISITS, until

from ray_snake import SnakeTrainer
from ray_snake.runtime.events import VisitDecided

LOOK_AT = VISITS // 2
# No other test's: Ray goes on serving what drivers of runs that are over have told it.
NAME = "watched-by-prometheus"
LINE = re.compile(r"^ray_(snake_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def read_metrics(run):
    """Return the figures of a run on all machines, by name and those labels that are ours."""
    found = {}
    for machine in (one for one in ray.nodes() if one["Alive"]):
        url = f"http://{machine['NodeManagerAddress']}:{machine['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            # Ray takes a moment to notice that a machine is gone, or to serve a new one's.
            continue
        for name, labels, value in LINE.findall(text):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if tags["run"] == run:
                own = (tags[one] for one in ("node", "result", "phase", "rows") if one in tags)
                found[(name, *own)] = float(value)
    return found


def decided(found):
    """Return the visits that were decided by node."""
    return [value for key, value in found.items() if key[0] == "snake_visits_decided_total"]


def trained(found):
    """Return the nodes of which it is known how long their visits took."""
    return {key[1] for key in found if key[0] == "snake_visit_seconds_total"}


def test_a_cluster_serves_a_runs_figures_while_it_goes_on(raylets, tmp_path):
    seen = {}

    def serves():
        seen.update(read_metrics(NAME))
        # Each figure is served on its own: the last ones of a visit may come a moment later.
        there = {("snake_visits_planned",), ("snake_nodes",), ("snake_accuracy", "test")}
        return (
            there <= seen.keys()
            and min(seen.get(("snake_visits",), 0), sum(decided(seen))) >= LOOK_AT
            and len(trained(seen)) == NODES
        )

    def look(event):
        if isinstance(event, VisitDecided) and event.record.visit == LOOK_AT:
            until(serves, "its figures are served")

    SnakeTrainer(config=CONFIG, storage=tmp_path, name=NAME, progress=False, on_event=look).fit()
    assert seen["snake_visits_planned",] == VISITS
    assert seen["snake_nodes",] == NODES
    assert len(decided(seen)) == NODES
    assert 0 < seen["snake_accuracy", "test"] <= 1
