"""LoRA on real clusters: adapters travel, bases once or not at all, and all ways are exact."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scenarios import kill, on_visit, pid_of

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.cli.export import export
from ray_snake.models.registry import build_model
from ray_snake.runtime.events import NodeLost, Recovering
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import DRIVER, EvaluationRecord
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.storage import Storage

NODES = 3
TRIPS = 3
TOKENS = 64
# Bases above 100 kB, so that they lie in object stores.
SHAPE = {
    "model_type": "llama",
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}


def rows(seed):
    """Return rows of tokens that count up, with the tokens that follow."""
    starts = np.random.default_rng(seed).integers(0, TOKENS - 12, 16)
    numbers = starts[:, None] + np.arange(12)
    return numbers[:, :-1].copy(), numbers[:, 1:].copy()


def train(folder, options, *, on_event=None, resume=False, **sections):
    """Train on nodes that share a process, on another machine than the driver's side."""
    config = SnakeConfig.from_tree(
        {
            "seed": 5,
            "model": {"name": "huggingface", "options": {"lora": {"rank": 4}, **options}},
            "nodes": {"nodes_per_actor": NODES, "labels": {"site": "a"}},
            "snake": {"trips": TRIPS, "span_width": 1, "train_last": False},
            "training": {"optimizer": "adamw", "learning_rate": 0.02, "batch_size": 8},
            "loss": {"distillation": 0.1},
            **sections,
        }
    )
    trainer = SnakeTrainer(
        nodes=[rows(one) for one in range(NODES)],
        config=config,
        evaluation=rows(9),
        storage=folder,
        name="run",
        progress=False,
        on_event=on_event,
        resume=resume,
    )
    return trainer.fit()


def part_bytes(result):
    """Return the bytes of each block's version, and of each base."""
    stack = result.recipe.skeleton()
    sizes = stack.part_bytes()
    return sizes[: len(stack)], sizes[len(stack) :]


def visits(result):
    return Journal(Storage(result.run)).visits


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders of the model, which all nodes find: as float32, and as bfloat16."""
    folder = tmp_path_factory.mktemp("stored")
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        network = build_model("huggingface", {"config": SHAPE, "dtype": dtype})
        network.save_pretrained(folder / dtype)
    return folder


@pytest.fixture(scope="module")
def mapped(raylets, stored, tmp_path_factory):
    """A run whose nodes have the model's files."""
    return train(tmp_path_factory.mktemp("mapped"), {"model": str(stored / "float32")})


def test_with_the_models_files_at_hand_adapters_alone_travel(mapped):
    adapters, bases = part_bytes(mapped)
    assert sum(bases) > 10 * sum(adapters)
    assert len(visits(mapped)) == TRIPS * NODES
    for one in visits(mapped):
        assert one.bytes_pulled <= sum(adapters)
        assert one.bytes_returned == sum(adapters[block] for block in one.trained)
        assert {moved.bytes for moved in one.transfers} <= set(adapters)


def test_the_loss_falls_and_bases_stay(mapped):
    records = [one for one in Journal(Storage(mapped.run)) if isinstance(one, EvaluationRecord)]
    assert records[-1].loss < records[0].loss < np.log(TOKENS)
    initial = list(mapped.recipe.initial_blocks())
    blocks = len(mapped.recipe.skeleton())
    for state in RunFolder(Storage(mapped.run)).states():
        assert (state.version == 0) == (state.block >= blocks)
        if state.block >= blocks:
            assert state.arrays.keys() == initial[state.block].keys()
            for name, one in initial[state.block].items():
                assert np.array_equal(state.arrays[name], one.numpy())


def test_export_and_model_have_the_adapters(mapped, stored, tmp_path):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "exported"
    done = CliRunner().invoke(export, [mapped.run, "--format", "hf", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    inputs, labels = (torch.from_numpy(one) for one in rows(9))
    own = mapped.model()
    with torch.no_grad():
        found, expected = model(inputs).logits, own(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), labels.flatten())
    assert float(loss) == pytest.approx(mapped.metrics["loss"], abs=1e-5)
    adapters, _ = part_bytes(mapped)
    assert sum(4 * one.numel() for one in own.parameters() if one.requires_grad) == sum(adapters)


def test_a_model_that_nodes_have_not_travels_to_their_machine_once(raylets, tmp_path):
    result = train(tmp_path, {"config": SHAPE}, codec={"name": "int8"})
    adapters, bases = part_bytes(result)
    first = {}
    for one in visits(result):
        first.setdefault(one.node, one)
        own = sum(bases) if first[one.node] is one else 0
        # Adapters travel whole once, and then as the codec has them.
        assert own <= one.bytes_pulled < own + 1.5 * sum(adapters)
        assert one.bytes_returned < 0.5 * max(adapters)
    moved = [
        (one.source, one.bytes)
        for visit in visits(result)
        for one in visit.transfers
        if one.bytes in bases
    ]
    assert sorted(moved) == sorted((DRIVER, one) for one in bases)


def test_whole_models_by_lora_are_averaged_on_bases_of_another_precision(raylets, stored, tmp_path):
    # Nodes would have copies of their own if they read the files.
    result = train(
        tmp_path,
        {"model": str(stored / "bfloat16")},
        strategy="fedavg",
        transport={"mode": "client_server"},
    )
    adapters, bases = part_bytes(result)
    for one in visits(result):
        assert one.trained == (0, 1, 2)
        assert one.bytes_returned == sum(adapters)
        own = sum(bases) if one.trip == 1 else 0
        assert one.bytes_pulled == own + sum(adapters)
    assert result.metrics["loss"] < 4


class StoppedError(Exception):
    """Ends a run from outside."""


def test_a_run_that_is_stopped_and_whose_processes_die_comes_to_the_same_bits(
    raylets, stored, mapped, tmp_path
):
    def stop():
        raise StoppedError

    options = {"model": str(stored / "float32")}
    with pytest.raises(StoppedError):
        train(tmp_path, options, on_event=on_visit(3, stop))
    seen = set()
    kill_node = on_visit(5, lambda: kill(pid_of("SnakeNode")))
    kill_engine = on_visit(7, lambda: kill(pid_of("SnakeEngine")))

    def watch(event):
        seen.add(type(event))
        kill_node(event)
        kill_engine(event)

    again = train(tmp_path, options, on_event=watch, resume=True)
    assert seen >= {NodeLost, Recovering}
    assert again.summary["weights_sha256"] == mapped.summary["weights_sha256"]
    adapters, _ = part_bytes(again)
    assert all(one.bytes_pulled <= sum(adapters) for one in visits(again))
