"""Rows, activations and labels never leave their node: marked ones are looked for elsewhere."""

import traceback
from dataclasses import dataclass, field

import pytest
import ray
from audited_run import SETTINGS, STEPS, AuditedRun, everyone, network, task_loss
from ray._private.internal_api import node_stats
from scenarios import until

from ray_snake.errors import VisitFailedError
from ray_snake.runtime.events import RunEnded, VisitStarted
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import StartRecord, VisitRecord
from ray_snake.storage import Storage

# Beside its arrays: names, shapes, dtypes, and Ray's own header.
BLOCK_OVERHEAD_BYTES = 2048
# An answer that is no block: a visit's report, rows of a shard, progress, nothing.
ANSWER_BYTES = 2048


@dataclass
class Audit:
    """What was seen of a run in which nothing was planted."""

    run: AuditedRun
    records: list = field(default_factory=list)
    own: dict = field(default_factory=dict)
    nodes: dict = field(default_factory=dict)
    searches: list = field(default_factory=list)
    files: dict = field(default_factory=dict)
    arrived_bytes: int = 0


def bytes_created_here():
    """Return all bytes that were ever put into the object store of this process's machine."""
    here = ray.get_runtime_context().get_node_id()
    (machine,) = [one for one in ray.nodes() if one["NodeID"] == here]
    stats = node_stats(machine["NodeManagerAddress"], machine["NodeManagerPort"])
    return stats.store_stats.cumulative_created_bytes


@pytest.fixture(scope="module")
def audit(raylets, tmp_path_factory):
    """A run that is searched while a visit of each node is held in its middle, and at its end."""
    run = AuditedRun(tmp_path_factory.mktemp("audit"), seed=1)
    audit = Audit(run)
    nodes = len(run.names)

    def look(event):
        if isinstance(event, VisitStarted) and event.visit.trip == 2:
            (held,) = until(lambda: list(run.holds.iterdir()), "a visit is held")
            pid = int(held.name)
            audit.nodes[pid] = run.names[event.visit.node]
            if len(audit.nodes) == nodes:
                audit.searches.append(run.search_everyone())
                audit.own[pid] = audit.searches[0][0].get(pid, set())
            else:
                audit.own.update(run.search([pid]))
            held.unlink()
        if isinstance(event, RunEnded):
            audit.searches.append(run.search_everyone())

    before = bytes_created_here()
    loss = task_loss(holds=run.holds, at=STEPS + 2)
    result = run.fit(network(run.meter), loss, look)
    audit.arrived_bytes = bytes_created_here() - before
    run.tell(f"{result.summary} {result.history.to_pylist()}")
    audit.records = read_records(Storage(result.run))
    audit.files = run.search_files()
    return audit


def test_a_nodes_own_process_holds_its_rows_and_the_search_finds_them(audit):
    forms = ("stored", "loaded", "activations", "labels")
    for pid, shard in audit.nodes.items():
        expected = {f"{shard}: {form}" for form in forms}
        # Tokens are loaded as they are stored.
        assert expected - {"tokens: loaded"} <= audit.own[pid]


def test_no_other_process_holds_them_during_the_run_or_at_its_end(audit):
    assert len(audit.searches) == 2
    for found, names in audit.searches:
        kinds = ("raylet", "gcs_server", "SnakeDriver", "SnakeEngine", "DashboardAgent")
        for kind in kinds:
            assert any(kind in name for name in names.values()), (kind, names)
        for pid, forms in found.items():
            shard = audit.nodes.get(pid)
            foreign = {one for one in forms if shard is None or not one.startswith(shard)}
            assert not foreign, f"process {pid} ({names[pid]}) holds {foreign}"


def test_no_log_metric_or_checkpoint_holds_them(audit):
    assert audit.files == {}


def test_what_leaves_a_node_is_its_trained_blocks_and_scalars(audit):
    visits = [one for one in audit.records if isinstance(one, VisitRecord)]
    for pid, shard in audit.nodes.items():
        left = audit.run.left(pid)
        blocks = [size for kind, size in left if kind == "LayerState"]
        others = [(kind, size) for kind, size in left if kind != "LayerState"]
        own = [one for one in visits if one.node == audit.run.names.index(shard)]
        produced = [block.bytes for visit in own for block in visit.blocks]
        assert len(blocks) == len(produced) > 0
        for size, arrays in zip(blocks, produced, strict=True):
            assert arrays < size <= arrays + BLOCK_OVERHEAD_BYTES
        assert sum(produced) == sum(visit.bytes_returned for visit in own)
        assert {kind for kind, _ in others} <= {"VisitReport", "dict", "tuple", "NoneType"}
        assert [kind for kind, _ in others].count("VisitReport") == len(own)
        assert max(size for _, size in others) <= ANSWER_BYTES


def test_what_reaches_the_drivers_machine_is_what_the_journal_says(audit):
    blocks = [
        block.bytes
        for record in audit.records
        if isinstance(record, (StartRecord, VisitRecord))
        for block in record.blocks
    ]
    assert 0 <= audit.arrived_bytes - sum(blocks) <= len(blocks) * BLOCK_OVERHEAD_BYTES


def test_rows_that_a_model_smuggles_out_are_found(raylets, tmp_path):
    run = AuditedRun(tmp_path, seed=2)
    found = {}

    def look(event):
        if isinstance(event, RunEnded):
            stores = [pid for pid, name in everyone().items() if name.startswith("raylet")]
            found.update(run.search(stores))

    shared = {"nodes_per_actor": len(run.names), **SETTINGS["nodes"]}
    few = {"trips": 1, "span_width": 1}
    result = run.fit(network(smuggles=True), task_loss(), look, snake=few, nodes=shared)
    smuggled = f"{run.names[result.history['node'].to_pylist()[-1]]}: activations"
    assert any(smuggled in forms for forms in found.values())
    files = run.search_files()
    blocks = [forms for path, forms in files.items() if path.suffix == ".safetensors"]
    assert blocks == [{smuggled}]
    logs = [forms for path, forms in files.items() if path.suffix == ".out"]
    assert any("floats: text" in forms for forms in logs)


def test_an_error_in_a_visit_takes_no_rows_along(raylets, tmp_path):
    run = AuditedRun(tmp_path, seed=3, shards=("floats",))
    with pytest.raises(VisitFailedError, match="ValueError: these are no targets:; ") as caught:
        run.fit(network(), task_loss(raises=True))
    trace = "".join(traceback.format_exception(caught.value))
    # Where it happened is what the program needs to know.
    assert "in loss" in trace
    assert "raise error" in trace
    run.tell(trace)
    found, names = run.search_everyone()
    assert not {names[pid]: forms for pid, forms in found.items()}
    assert run.search_files() == {}
