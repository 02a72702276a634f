"""LoRA's adapters on real clusters: they travel, bases do not or once, and every way back is exact."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scenarios import kill, on_visit, pid_of

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.cli.main import main
from ray_snake.models.registry import build_model
from ray_snake.runtime.events import NodeLost, Recovering
from ray_snake.runtime.journal import DRIVER, Journal
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.storage import Storage

NODES = 3
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
    config = SnakeConfig.from_tree(
        {
            "seed": 5,
            "model": {"name": "huggingface", "options": {"lora": {"rank": 4}, **options}},
            "snake": {"trips": 3, "span_width": 1, "train_last": False},
            "training": {"optimizer": "adamw", "learning_rate": 0.02, "batch_size": 8},
            "loss": {"distillation": 0.1},
            **sections,
        }
    )
    return SnakeTrainer(
        nodes=[rows(one) for one in range(NODES)],
        config=config,
        evaluation=rows(9),
        storage=folder,
        name="run",
        progress=False,
        on_event=on_event,
        resume=resume,
    ).fit()


def part_bytes(result):
    """Return the bytes of each block's version, and of each base."""
    stack = result.recipe.skeleton()
    sizes = stack.part_bytes()
    return sizes[: len(stack)], sizes[len(stack) :]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder of the model, which all nodes find."""
    folder = tmp_path_factory.mktemp("stored") / "model"
    torch.manual_seed(0)
    build_model("huggingface", {"config": SHAPE}).save_pretrained(folder)
    return {"model": str(folder)}


@pytest.fixture(scope="module")
def from_files(raylets, stored, tmp_path_factory):
    return train(tmp_path_factory.mktemp("from_files"), stored)


@pytest.fixture(scope="module")
def drawn(raylets, tmp_path_factory):
    """A run of a model that no node has."""
    return train(tmp_path_factory.mktemp("drawn"), {"config": SHAPE})


def test_with_the_models_files_at_hand_adapters_alone_travel(from_files):
    adapters, bases = part_bytes(from_files)
    assert sum(bases) > 10 * sum(adapters)
    visits = Journal(Storage(from_files.run)).visits
    assert len(visits) == 3 * NODES
    for one in visits:
        assert one.bytes_pulled <= sum(adapters)
        assert one.bytes_returned == sum(adapters[block] for block in one.trained)
        assert {moved.bytes for moved in one.transfers} <= set(adapters)


def test_a_model_that_nodes_have_not_travels_to_each_once(drawn):
    adapters, bases = part_bytes(drawn)
    first = {}
    for one in Journal(Storage(drawn.run)).visits:
        first.setdefault(one.node, one)
        assert one.bytes_pulled == pytest.approx(
            sum(bases) if first[one.node] is one else 0, abs=sum(adapters)
        )
    moved = [
        (one.source, one.bytes)
        for visit in Journal(Storage(drawn.run)).visits
        for one in visit.transfers
        if one.bytes in bases
    ]
    assert {source for source, _ in moved} == {DRIVER}
    assert len(moved) <= 2 * len(bases)


def test_what_is_trained_is_the_same_wherever_the_base_comes_from(from_files, stored, tmp_path):
    # Stored in another precision, the files are read by the driver's side alone.
    for option, changes in (("half", {"dtype": "bfloat16"}), ("whole", {})):
        network = build_model("huggingface", {**stored, **changes})
        network.save_pretrained(tmp_path / option)
    read = train(tmp_path / "a", {"model": str(tmp_path / "half")})
    assert max(one.bytes_pulled for one in Journal(Storage(read.run)).visits) > sum(
        part_bytes(read)[1]
    )
    mapped = train(tmp_path / "b", {"model": str(tmp_path / "whole")})
    assert mapped.summary["weights_sha256"] == from_files.summary["weights_sha256"]


def test_the_loss_falls_and_the_base_stays(from_files):
    records = [
        one for one in Journal(Storage(from_files.run)) if getattr(one, "kind", "") == "evaluation"
    ]
    assert from_files.metrics["loss"] < 0.9 * records[0].loss
    initial = list(from_files.recipe.initial_blocks())
    stack = from_files.recipe.skeleton()
    for state in RunFolder(Storage(from_files.run)).states():
        assert (state.version == 0) == (state.block >= len(stack))
        if state.block >= len(stack):
            assert state.arrays.keys() == initial[state.block].keys()
            for name, one in initial[state.block].items():
                assert np.array_equal(state.arrays[name], one.numpy())


def test_differences_of_adapters_travel_as_codecs_have_them(raylets, stored, from_files, tmp_path):
    result = train(tmp_path, stored, codec={"name": "int8"})
    adapters, _ = part_bytes(result)
    returned = [one.bytes_returned for one in Journal(Storage(result.run)).visits]
    assert max(returned) < 0.5 * max(adapters)
    assert result.metrics["loss"] < 1.1 * from_files.metrics["loss"]


def test_averages_of_adapters_are_made_at_the_drivers_side(raylets, stored, tmp_path):
    result = train(tmp_path, stored, strategy="fedavg", transport={"mode": "client_server"})
    adapters, _ = part_bytes(result)
    for one in Journal(Storage(result.run)).visits:
        assert one.trained == (0, 1, 2)
        assert one.bytes_returned == sum(adapters)
        assert one.bytes_pulled <= sum(adapters)


@pytest.mark.parametrize("name", ["SnakeNode", "SnakeEngine"])
def test_a_process_that_dies_changes_nothing(name, raylets, stored, from_files, tmp_path):
    seen = []
    watch = on_visit(4, lambda: kill(pid_of(name)))

    def look(event):
        seen.append(type(event))
        watch(event)

    again = train(tmp_path, stored, on_event=look)
    assert {NodeLost, Recovering} & set(seen)
    assert again.summary["weights_sha256"] == from_files.summary["weights_sha256"]
    adapters, _ = part_bytes(again)
    assert all(one.bytes_pulled <= sum(adapters) for one in Journal(Storage(again.run)).visits)


class Interrupted(Exception):
    """Ends a run from outside."""


def test_an_interrupted_run_goes_on_to_the_same_bits(raylets, stored, from_files, tmp_path):
    def interrupt():
        raise Interrupted

    with pytest.raises(Interrupted):
        train(tmp_path, stored, on_event=on_visit(5, interrupt))
    again = train(tmp_path, stored, resume=True)
    assert again.summary["weights_sha256"] == from_files.summary["weights_sha256"]


def test_export_and_evaluation_need_no_other_files_than_the_runs(from_files, tmp_path):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "exported"
    done = CliRunner().invoke(main, ["export", from_files.run, "--format", "hf", "--out", str(out)])
    assert done.exit_code == 0, done.output
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama"
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    inputs, labels = (torch.from_numpy(one) for one in rows(9))
    with torch.no_grad():
        found, expected = model(inputs).logits, from_files.model()(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), labels.flatten())
    assert float(loss) == pytest.approx(from_files.metrics["loss"], abs=1e-5)


def test_a_recipe_of_the_run_builds_what_is_stored(from_files):
    assert isinstance(from_files.recipe, Recipe)
    trained = [one for one in from_files.model().parameters() if one.requires_grad]
    adapters, _ = part_bytes(from_files)
    assert sum(4 * one.numel() for one in trained) == sum(adapters)
