"""Models of transformers as block stacks: the same outputs, tied weights, loading and export."""

import copy
import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ray_snake.config import LossConfig, SnakeConfig, TrainingConfig
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.fit import output_shape
from ray_snake.engine.objective import Objective, cross_entropy
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.errors import ModelError
from ray_snake.models import pretrained
from ray_snake.models.registry import build_model
from ray_snake.runtime.recipe import Recipe

TOKENS = 29
SHAPE = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
OPT = {**SHAPE, "ffn_dim": 24, "word_embed_proj_dim": 16}
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": {"model_type": "llama", **SHAPE, "num_key_value_heads": 2},
    "llama_tied": {"model_type": "llama", **SHAPE, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **SHAPE, "num_key_value_heads": 2},
    "qwen2_windows": {
        **{"model_type": "qwen2", **SHAPE, "num_key_value_heads": 2},
        **{"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    },
    "qwen3": {"model_type": "qwen3", **GROUPED},
    "gemma": {"model_type": "gemma", **GROUPED},
    "gemma2": {"model_type": "gemma2", **GROUPED, "sliding_window": 3},
    "gemma3": {
        **{"model_type": "gemma3_text", **GROUPED},
        **{"sliding_window": 3, "layer_types": WINDOWS},
    },
    "opt": {"model_type": "opt", **OPT},
    # As OPT-350m has it: narrower embeddings, norms behind the layers.
    "opt_projected": {
        **{"model_type": "opt", **OPT},
        **{"word_embed_proj_dim": 8, "do_layer_norm_before": False},
    },
    "gpt2": {
        **{"model_type": "gpt2", "vocab_size": TOKENS, "n_embd": 16, "n_layer": 3, "n_head": 4},
        **{"n_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    },
    "bert": {"model_type": "bert", **SHAPE},
}
TIED = {"llama_tied", "gemma", "gemma2", "gemma3", "opt", "opt_projected", "gpt2", "bert"}
LANGUAGE, CLASSES = "language_modelling", "sequence_classification"
CASES = list(itertools.product(CONFIGS, (LANGUAGE, CLASSES)))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(name, task):
    changes = {"is_decoder": True} if name == "bert" and task == LANGUAGE else {}
    return {**CONFIGS[name], **changes}


def options_of(name, task, **more):
    classes = {"classes": 3} if task == CLASSES else {}
    return {"config": config_of(name, task), "task": task, **classes, **more}


def kind_of(task):
    import transformers

    if task == LANGUAGE:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForSequenceClassification


def theirs(name, task):
    """Transformers' own model, with weights in which no zeros or ones are left."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**config_of(name, task), num_labels=3)
    model = kind_of(task).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens(rows=3, length=8, padded=True):
    drawn = torch.randint(3, TOKENS, (rows, length), generator=torch.Generator().manual_seed(1))
    if padded:
        drawn[1, 5:] = 0
        drawn[2, 2:] = 0
    return drawn


@torch.no_grad()
def scores(model, ids):
    """Transformers' scores, of real tokens."""
    found = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    return found[ids != 0] if found.ndim == 3 else found


@torch.no_grad()
def our_scores(stack, ids):
    found = stack.eval()(ids)
    return found[ids != 0] if found.ndim == 3 else found


@pytest.mark.parametrize(("name", "task"), CASES)
def test_outputs_are_those_of_transformers_and_so_are_those_of_the_export(name, task, tmp_path):
    model = theirs(name, task)
    model.save_pretrained(tmp_path / "theirs")
    network = build_model("huggingface", {"model": str(tmp_path / "theirs"), "task": task})
    stack = BlockStack.cut(network)
    assert stack.names == ("embedding", "layer1", "layer2", "layer3", "head")
    ids = tokens()
    expected = scores(model, ids)
    assert expected.std() > 0.01
    torch.testing.assert_close(our_scores(stack, ids), expected, rtol=0, atol=1e-5)

    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(1.1)
    network.save_pretrained(tmp_path / "ours")
    back, report = kind_of(task).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert type(back) is type(model)
    ours = our_scores(stack, ids)
    assert not torch.allclose(ours, expected, atol=1e-3)
    torch.testing.assert_close(ours, scores(back.eval(), ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2", "bert"])
def test_classes_do_not_depend_on_padding_on_either_side(name):
    torch.manual_seed(0)
    stack = BlockStack.cut(build_model("huggingface", options_of(name, CLASSES)))
    ids = tokens(padded=False)
    if name in ("llama", "gemma2", "opt"):
        # The others count positions from the first token, padding or not.
        padded = F.pad(ids, (3, 0), value=0)
        torch.testing.assert_close(our_scores(stack, padded), our_scores(stack, ids))
    padded = F.pad(ids, (0, 3), value=0)
    torch.testing.assert_close(our_scores(stack, padded), our_scores(stack, ids))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_skeleton_holds_no_memory_and_fits_what_is_measured(name, task):
    skeleton = BlockStack.skeleton(lambda: build_model("huggingface", options_of(name, task)))
    assert all(one.is_meta for one in [*skeleton.parameters(), *skeleton.buffers()])
    shape = output_shape(skeleton, (6,), integer_inputs=True, subject="a.arrow", largest=28)
    assert shape == ((6, TOKENS) if task == LANGUAGE else (3,))
    costs, _ = profile_blocks(skeleton, (6,), integer_inputs=True, batch=2)
    assert all(cost.forward_flops > 0 for cost in costs[1:])
    assert tuple(cost.weight_bytes for cost in costs) == skeleton.block_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_tied_weights_belong_to_the_embedding_alone(name):
    stack = BlockStack.cut(build_model("huggingface", options_of(name, LANGUAGE)))
    assert stack.reads[-1] == ({0} if name in TIED else frozenset())
    weights = sum(one.numel() for one in stack.parameters())
    assert weights == theirs(name, LANGUAGE).num_parameters()


@pytest.mark.parametrize("name", CONFIGS)
def test_drawn_weights_are_spread_as_transformers_draws_them(name):
    import transformers

    torch.manual_seed(3)
    ours = build_model("huggingface", options_of(name, LANGUAGE))
    config = transformers.AutoConfig.for_model(**config_of(name, LANGUAGE))
    model = kind_of(LANGUAGE).from_config(config)
    own = {full: tensor for block in ours._named() for full, tensor in block.items()}
    for full, weight in model.state_dict().items():
        if full not in own:
            assert name in TIED
            continue
        assert own[full].std() == pytest.approx(float(weight.std()), rel=0.35, abs=1e-6), full
    torch.manual_seed(3)
    again = build_model("huggingface", options_of(name, LANGUAGE))
    assert all(
        torch.equal(one, other)
        for one, other in zip(ours.parameters(), again.parameters(), strict=True)
    )


class Counting:
    """Rows of tokens that count up by one, with the tokens that follow, or a class, as targets."""

    def __init__(self, task, rows=32, length=7):
        starts = np.random.Generator(np.random.PCG64(1)).integers(3, 20, rows)
        numbers = starts[:, None] + np.arange(length + 1)
        self.inputs = numbers[:, :-1].copy()
        self.targets = numbers[:, 1:].copy() if task == LANGUAGE else starts % 3

    def __len__(self):
        return len(self.inputs)

    def batch(self, rows):
        return self.inputs[rows], self.targets[rows]


def visit(stack, samples, trained, **more):
    return train_visit(
        stack,
        samples,
        trained=trained,
        learning_rate=0.02,
        seed=1,
        training=TrainingConfig(
            optimizer="adamw", batch_size=8, epochs=4, weight_decay=0.0, **more
        ),
        objective=Objective(LossConfig(distillation=0.1, logit_adjustment=0.0)),
    )


@pytest.mark.parametrize("task", [LANGUAGE, CLASSES])
@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "opt", "gpt2", "bert"])
def test_visits_over_spans_train_what_they_name_and_lower_the_loss(name, task):
    torch.manual_seed(0)
    stack, samples = (
        BlockStack.cut(build_model("huggingface", options_of(name, task))),
        Counting(task),
    )
    arrived = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    for trained in [(0, 1, 4), (2, 3, 4)]:
        before = [{k: v.clone() for k, v in stack.tensors(one).items()} for one in range(5)]
        assert visit(stack, samples, trained).finite
        for block in range(5):
            changed = [
                not torch.equal(v, before[block][k]) for k, v in stack.tensors(block).items()
            ]
            assert any(changed) is (block in trained)
    found = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    assert found.loss < 0.9 * arrived.loss
    assert (found.perplexity is None) is (task == CLASSES)


@pytest.mark.parametrize("name", ["gemma", "gpt2", "bert"])
def test_frozen_blocks_behind_a_trained_embedding_may_keep_little(name):
    weights = {}
    for suffix in ("eager", "recompute", "lean"):
        torch.manual_seed(0)
        stack = BlockStack.cut(build_model("huggingface", options_of(name, LANGUAGE)))
        visit(stack, Counting(LANGUAGE), (0, 1), suffix=suffix)
        weights[suffix] = [*stack.tensors(0).values(), *stack.tensors(1).values()]
    for eager, again, lean in zip(*weights.values(), strict=True):
        assert torch.equal(again, eager)
        torch.testing.assert_close(lean, eager, rtol=0, atol=1e-4)


def test_a_copy_of_a_stack_reads_its_own_embedding():
    stack = BlockStack.cut(build_model("huggingface", options_of("llama_tied", LANGUAGE)))
    other = copy.deepcopy(stack)
    before = our_scores(stack, tokens())
    with torch.no_grad():
        other.blocks[0].parts["embed_tokens"].weight.zero_()
    assert torch.equal(our_scores(stack, tokens()), before)
    assert not our_scores(other, tokens()).any()


def test_a_classifier_grows_on_a_base_model_with_names_of_long_ago(tmp_path):
    model = theirs("bert", CLASSES)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    former = {
        re.sub(
            "LayerNorm.bias$", "LayerNorm.beta", re.sub("LayerNorm.weight$", "LayerNorm.gamma", one)
        ).removeprefix("bert."): tensor
        for one, tensor in stored.items()
        if not one.startswith("classifier")
    }
    save_file(former, tmp_path / "model.safetensors", {"format": "pt"})
    torch.manual_seed(5)
    options = {"model": str(tmp_path), "task": CLASSES, "classes": 7}
    network = build_model("huggingface", options)
    own = {full: tensor for block in network._named() for full, tensor in block.items()}
    for full, tensor in stored.items():
        if not full.startswith("classifier"):
            assert torch.equal(own[full], tensor)
    assert own["classifier.weight"].shape == (7, 16)
    assert own["classifier.weight"].std() == pytest.approx(0.02, rel=0.3)
    assert not own["classifier.bias"].any()


def test_a_missing_weight_of_a_layer_is_named(tmp_path):
    theirs("llama", LANGUAGE).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored.pop("model.layers.1.mlp.up_proj.weight")
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"holds no weight 'model\.layers\.1\.mlp\.up_proj\.wei"):
        build_model("huggingface", {"model": str(tmp_path)})


def test_several_files_and_the_tokenizer_beside_them(tmp_path, monkeypatch):
    model = theirs("llama", LANGUAGE)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(pretrained, "FILE_BYTES", 8_000)
    network = build_model("huggingface", {"model": str(tmp_path / "theirs")})
    network.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == "{}"
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    back = kind_of(LANGUAGE).from_pretrained(tmp_path / "ours")
    ids = tokens()
    torch.testing.assert_close(scores(back.eval(), ids), scores(model, ids))


MEMORY = """
import sys
from ray_snake.config import SnakeConfig
from ray_snake.engine.stack import BlockStack
from ray_snake.runtime.recipe import Recipe

def private():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def recipe(options):
    model = {"name": "huggingface", "options": options}
    return Recipe(config=SnakeConfig.from_tree({"model": model}))

# Whatever is imported and kept comes with the first model.
small = {"model_type": "llama", "hidden_size": 8, "vocab_size": 8, "num_hidden_layers": 1}
small |= {"intermediate_size": 8, "num_attention_heads": 2}
list(recipe({"config": small}).initial_blocks())
before = private()
total, most = 0.0, 0
if sys.argv[2] == "whole":
    stack = recipe({"model": sys.argv[1]}).initial()
    total = sum(float(one.sum()) for one in stack.parameters())
    size, most = sum(stack.block_bytes()), private() - before
else:
    size = 0
    for tensors in recipe({"model": sys.argv[1]}).initial_blocks():
        total += sum(float(one.sum()) for one in tensors.values())
        size += sum(one.nbytes for one in tensors.values())
        most = max(most, private() - before)
        del tensors
print(size, most, total)
"""


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """Folders of one model, 53 MB in float32: as that, and as bfloat16."""
    folder = tmp_path_factory.mktemp("medium")
    options = {"model_type": "llama", "vocab_size": 4000, "hidden_size": 256}
    options |= {"num_hidden_layers": 10, "intermediate_size": 1024, "num_attention_heads": 4}
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = build_model("huggingface", {"config": options, "dtype": dtype})
        model.save_pretrained(folder / dtype)
    return folder


@pytest.mark.parametrize(
    ("stored", "how"), [("float32", "whole"), ("float32", "by_block"), ("bfloat16", "by_block")]
)
def test_loading_takes_no_private_copy_of_the_weights(stored, how, medium):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(medium / stored), how],
        capture_output=True,
        text=True,
        check=True,
    )
    size, private, total = (float(one) for one in done.stdout.split()[-3:])
    assert size > 45e6
    assert total
    # Weights of another type than the stored one are memory, but of one block at a time.
    assert private < 0.3 * size


@pytest.mark.parametrize("source", ["drawn", "stored"])
def test_blocks_filled_one_at_a_time_are_those_of_the_whole(source, tmp_path):
    options = options_of("opt", CLASSES)
    if source == "stored":
        build_model("huggingface", {**options, "dtype": "bfloat16"}).save_pretrained(tmp_path)
        options = {"model": str(tmp_path), "task": CLASSES}
    tree = {"model": {"name": "huggingface", "options": options}, "seed": 3}
    recipe = Recipe(config=SnakeConfig.from_tree(tree))
    before = torch.get_rng_state()
    whole, blocks = recipe.initial(), []
    for tensors in recipe.initial_blocks():
        torch.rand(3)
        blocks.append({name: tensor.clone() for name, tensor in tensors.items()})
    torch.set_rng_state(before)
    assert len(blocks) == len(whole)
    for block, tensors in enumerate(blocks):
        assert tensors.keys() == whole.tensors(block).keys()
        for name, tensor in whole.tensors(block).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensors[name], tensor)


def test_importing_ray_snake_and_the_registry_imports_no_transformers():
    code = (
        "import sys, ray_snake, ray_snake.models.registry as r; assert 'huggingface' in "
        "r.model_names(); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "is not set, and config names no model_type"),
        ({"config": {"model_type": "t5"}}, "models of the kind 't5' can't be cut into blocks"),
        ({"config": {"model_type": "lama"}}, "can't be used"),
        ({"model": "no/such/folder"}, "can't be used"),
        ({"config": CONFIGS["bert"]}, "every token sees those that follow it"),
    ],
)
def test_what_can_not_be_built_is_refused(options, says):
    with pytest.raises(ModelError, match=says):
        build_model("huggingface", options)
