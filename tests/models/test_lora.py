"""LoRA's adapters on models of transformers: peft's own bits, and nothing else ever changes."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_huggingface import (
    CASES,
    CLASSES,
    LANGUAGE,
    TIED,
    TOKENS,
    Counting,
    kind_of,
    options_of,
    our_scores,
    scores,
    theirs,
    tokens,
    visit,
)

from ray_snake.config import LossConfig, SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.fit import output_shape
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective, cross_entropy
from ray_snake.engine.profile import profile_blocks, time_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.errors import ConfigError, ModelError
from ray_snake.layers.tensors import unpack
from ray_snake.models.registry import build_model
from ray_snake.planning.cost import predict_visit
from ray_snake.planning.span import Span, Visit
from ray_snake.runtime.bases import bases_at_hand
from ray_snake.runtime.forecast import forecast
from ray_snake.runtime.preflight import check_model, check_shards
from ray_snake.runtime.recipe import Recipe

LORA = {"rank": 4, "alpha": 12.0}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(options, **sections):
    tree = {"model": {"name": "huggingface", "options": options}, "seed": 3, **sections}
    return Recipe(config=SnakeConfig.from_tree(tree))


def filled(options):
    """Return a network with its initial weights, read or drawn a part at a time."""
    made = recipe(options)
    stack = made.skeleton()
    for part, tensors in enumerate(made.initial_blocks()):
        stack.load_part(part, {name: one.clone() for name, one in tensors.items()})
    return stack


def shaken(stack):
    """Give all adapters values that change the outputs; return the stack."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for block in range(len(stack)):
            for name, weight in stack.trainable(block).items():
                if ".lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return stack


def trainable(stack):
    """Return all weights that visits train, by their paths in the whole model."""
    return {
        own.full_name(name): weight
        for block in range(len(stack))
        for own in stack.blocks[block].modules()
        if hasattr(own, "full_name")
        for name, weight in own.named_parameters()
        if name not in own.never_trains
    }


@pytest.mark.parametrize(("name", "task"), CASES)
def test_at_the_start_adapters_change_no_bit_of_any_output(name, task):
    plain = filled(options_of(name, task))
    adapted = filled(options_of(name, task, lora=LORA))
    assert torch.equal(our_scores(adapted, tokens()), our_scores(plain, tokens()))
    assert not torch.equal(our_scores(shaken(adapted), tokens()), our_scores(plain, tokens()))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_outputs_and_gradients_are_those_of_peft_on_the_whole_model(name, task, tmp_path):
    import peft

    model = theirs(name, task)
    model.save_pretrained(tmp_path)
    stack = shaken(filled({"model": str(tmp_path), "task": task, "lora": LORA}))
    stack.freeze_all_but(range(len(stack)))
    stack.eval()
    config = peft.LoraConfig(
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        target_modules="all-linear",
        task_type="CAUSAL_LM" if task == LANGUAGE else "SEQ_CLS",
    )
    whole = peft.get_peft_model(model, config).eval()
    ours = {f"base_model.model.{path}": one for path, one in trainable(stack).items()}
    trained = {
        key.replace(".modules_to_save.default", ""): one
        for key, one in whole.named_parameters()
        if one.requires_grad
    }
    assert trained.keys() == ours.keys()
    with torch.no_grad():
        for key, one in trained.items():
            one.copy_(ours[key])
    ids = tokens()
    expected = whole(input_ids=ids, attention_mask=(ids != 0).long()).logits
    found = stack(ids)
    if task == LANGUAGE:
        expected, found = expected[ids != 0], found[ids != 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    classes = torch.arange(len(found)) % found.shape[1]
    F.cross_entropy(expected, classes).backward()
    F.cross_entropy(found, classes).backward()
    for key, one in trained.items():
        assert one.grad.abs().max() > 0, key
        torch.testing.assert_close(ours[key].grad, one.grad, rtol=1e-4, atol=1e-6)
    assert all(
        one.grad is None for block in range(len(stack)) for one in stack.base(block).values()
    )


@pytest.mark.parametrize("task", [LANGUAGE, CLASSES])
@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "opt_projected", "gpt2", "bert"])
def test_visits_change_adapters_and_new_heads_of_what_they_train_and_lower_the_loss(name, task):
    stack, samples = filled(options_of(name, task, lora={"rank": 4})), Counting(task)
    arrived = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    parts, last = range(len(stack.owners)), len(stack) - 1
    for trained in [(0, last), (1, 2, last)]:
        before = [{k: v.clone() for k, v in stack.part(one).items()} for one in parts]
        assert visit(stack, samples, trained).finite
        for part in parts:
            same = [torch.equal(v, before[part][k]) for k, v in stack.part(part).items()]
            if part in trained:
                assert not any(same)
            else:
                assert all(same)
    found = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    assert found.loss < 0.97 * arrived.loss


@pytest.mark.parametrize("name", sorted(TIED - {"bert"}))
def test_a_tied_embedding_is_no_part_of_what_trains(name):
    stack = filled(options_of(name, LANGUAGE, lora=LORA))
    embedding = next(m for m in stack.blocks[0].modules() if isinstance(m, torch.nn.Embedding))
    assert embedding.weight.shape[0] == TOKENS
    assert not any(one is embedding.weight for one in trainable(stack).values())
    assert 0 in stack.reads[-1]


def test_blocks_in_which_nothing_trains_belong_to_their_neighbours():
    names = {
        task: filled(options_of("llama", task, lora=LORA)).names for task in (LANGUAGE, CLASSES)
    }
    assert names[LANGUAGE] == ("layer1", "layer2", "layer3")
    assert names[CLASSES] == ("layer1", "layer2", "layer3", "head")


def test_targets_alone_have_adapters():
    options = options_of("llama", CLASSES, lora={**LORA, "targets": ["q_proj", "mlp.up_proj"]})
    adapted = {path.rpartition(".lora_")[0] for path in trainable(filled(options))} - {""}
    assert {path.partition(".layers.")[2][2:] for path in adapted} == {
        "self_attn.q_proj",
        "mlp.up_proj",
    }
    assert len(adapted) == 6


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (
            {"targets": ["k_porj"]},
            r"model\.options\.lora\.targets: 'k_porj' is no linear layer of this model that can "
            r"have an adapter; did you mean 'k_proj'\? linear layers: down_proj, .*, v_proj$",
        ),
        ({"targets": ["lm_head"]}, "'lm_head' is no linear layer of this model that can have"),
        ({"targets": ["proj"]}, "'proj' is no linear layer of this model that can have"),
        ({"targets": []}, r"model\.options\.lora: .* at \[targets\]"),
        ({"rank": 0}, r"model\.options\.lora: .* at \[rank\]"),
        ({"dropout": 1.0}, r"model\.options\.lora: .* at \[dropout\]"),
        ({"rnk": 4}, r"model\.options\.lora: .*unknown key 'rnk'; did you mean 'rank'\?"),
    ],
)
def test_what_can_not_be_adapted_is_one_line_that_says_so(lora, says):
    with pytest.raises(ModelError, match=says) as refused:
        recipe(options_of("llama", LANGUAGE, lora=lora)).skeleton()
    assert "\n" not in str(refused.value)


def test_without_peft_one_line_says_how_to_get_it(monkeypatch):
    # What Python itself does with a module that is not installed.
    monkeypatch.setitem(sys.modules, "peft", None)
    says = r"model\.options\.lora: needs peft \(.*\); pip install 'ray-snake\[hf\]'"
    with pytest.raises(ModelError, match=says):
        recipe(options_of("llama", LANGUAGE, lora=LORA)).skeleton()


def test_a_network_that_is_cut_in_two_has_no_adapters():
    found = recipe(
        options_of("llama", LANGUAGE, lora=LORA),
        strategy="split",
        baseline={"shares_activations": True},
        loss={"distillation": 0.0},
    )
    with pytest.raises(ConfigError, match=r"'split' trains blocks whole.*model\.options\.lora"):
        check_model(found, nodes=2)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_exported_folder_has_the_adapters_merged(name, task, tmp_path):
    torch.manual_seed(0)
    network = build_model("huggingface", options_of(name, task, lora=LORA))
    stack = shaken(BlockStack.cut(network))
    network.save_pretrained(tmp_path)
    back, report = kind_of(task).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    ids = tokens()
    torch.testing.assert_close(our_scores(stack, ids), scores(back.eval(), ids), rtol=0, atol=1e-5)


def test_weights_in_half_precision_are_merged_in_whole_precision(tmp_path):
    options = options_of("llama_tied", LANGUAGE, lora=LORA, dtype="bfloat16")
    torch.manual_seed(0)
    network = build_model("huggingface", options)
    stack = shaken(BlockStack.cut(network))
    assert {one.dtype for one in trainable(stack).values()} == {torch.float32}
    network.save_pretrained(tmp_path)
    back = kind_of(LANGUAGE).from_pretrained(tmp_path, dtype="auto")
    assert back.dtype == torch.bfloat16
    layer = stack.blocks[1].get_submodule("parts.1.mlp.up_proj")
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    assert torch.equal(back.model.layers[1].mlp.up_proj.weight, exact.bfloat16())


@pytest.mark.parametrize("task", [LANGUAGE, CLASSES])
def test_a_base_is_mapped_from_files_where_no_copy_is_needed(task, tmp_path):
    theirs("llama_tied", task).save_pretrained(tmp_path)
    options = {"model": str(tmp_path), "task": task, "lora": LORA}
    whole = filled(options)
    skeleton = recipe(options).skeleton()
    bases = list(bases_at_hand(skeleton))
    assert [one.block for one in bases] == [*range(len(whole), len(whole.owners))]
    for base in bases:
        expected = whole.part(base.block)
        assert base.version == 0
        assert base.arrays.keys() == expected.keys()
        assert all(torch.equal(one, expected[name]) for name, one in unpack(base).items())
    assert all(one.is_meta for one in skeleton.parameters())
    assert not list(bases_at_hand(recipe({**options, "dtype": "bfloat16"}).skeleton()))
    assert not list(bases_at_hand(recipe(options_of("llama", task, lora=LORA)).skeleton()))
    without = {key: one for key, one in options.items() if key != "lora"}
    assert not list(bases_at_hand(recipe(without).skeleton()))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert not list(bases_at_hand(recipe(options).skeleton()))
    (tmp_path / "model.safetensors").unlink()
    assert not list(bases_at_hand(recipe(options).skeleton()))


@pytest.mark.parametrize("source", ["drawn", "stored"])
def test_parts_filled_one_at_a_time_are_those_of_the_whole(source, tmp_path):
    options = options_of("opt_projected", CLASSES, lora=LORA)
    if source == "stored":
        build_model("huggingface", {**options, "dtype": "bfloat16"}).save_pretrained(tmp_path)
        options = {"model": str(tmp_path), "task": CLASSES, "lora": LORA}
    whole, parts = recipe(options).initial(), filled(options)
    assert len(whole.owners) == len(parts.owners) == 10
    for part in range(len(whole.owners)):
        for name, tensor in whole.part(part).items():
            assert torch.equal(parts.part(part)[name], tensor), name


@pytest.mark.parametrize("task", [LANGUAGE, CLASSES])
def test_a_skeleton_with_adapters_holds_no_memory_and_what_is_measured_fits(task):
    made = recipe(options_of("gpt2", task, lora=LORA))
    skeleton = made.skeleton()
    assert all(one.is_meta for one in [*skeleton.parameters(), *skeleton.buffers()])
    shape = output_shape(skeleton, (6,), integer_inputs=True, subject="a.arrow", largest=28)
    assert shape == ((6, TOKENS) if task == LANGUAGE else (3,))
    costs, _ = profile_blocks(skeleton, (6,), integer_inputs=True, batch=2)
    assert tuple(cost.weight_bytes for cost in costs) == skeleton.block_bytes()
    assert tuple(cost.base_bytes for cost in costs) == skeleton.part_bytes()[len(skeleton) :]
    timed = time_blocks(
        skeleton,
        costs,
        (6,),
        integer_inputs=True,
        training=made.config.training,
        loss=made.config.loss,
        threads=1,
    )
    assert all(0 < cost.trained_share < 1 and cost.training_seconds > 0 for cost in timed)
    assert all(one.is_meta for one in skeleton.parameters())


@pytest.mark.parametrize("task", [LANGUAGE, CLASSES])
@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_a_base_in_another_precision_is_itself_again_after_the_visit(task, residency):
    stack, samples = filled(options_of("llama_tied", task, lora=LORA)), Counting(task)
    before = {
        part: {name: one.clone() for name, one in stack.part(part).items()}
        for part in range(len(stack), len(stack.owners))
    }
    arrived = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    more = {"residency": residency, "frozen_dtype": "bfloat16", "micro_batch": 4}
    assert visit(stack, samples, tuple(range(len(stack))), **more).finite
    for part, tensors in before.items():
        assert all(torch.equal(one, tensors[name]) for name, one in stack.part(part).items())
    assert {one.dtype for one in trainable(stack).values()} == {torch.float32}
    assert evaluate(stack, samples, task=cross_entropy, batch_size=16).loss < 0.97 * arrived.loss


def test_what_streams_gives_the_bits_of_what_stays():
    trained = (0, 2)
    weights = []
    for more in ({}, {"residency": "stream"}):
        stack = filled(options_of("llama_tied", LANGUAGE, lora={**LORA, "dropout": 0.2}))
        visit(stack, Counting(LANGUAGE), trained, **more)
        weights.append([*stack.part(0).values(), *stack.part(2).values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize("at_hand", [True, False])
def test_a_plan_tells_what_travels(at_hand, tmp_path):
    theirs("llama_tied", LANGUAGE).save_pretrained(tmp_path)
    options = {"model": str(tmp_path)} if at_hand else options_of("llama_tied", LANGUAGE)
    config = recipe(
        {**options, "lora": LORA}, snake={"trips": 6, "span_width": 1, "train_last": False}
    ).config
    stack = Recipe(config=config).skeleton()
    rows = Counting(LANGUAGE)
    sources = [ShardSource.of((rows.inputs, rows.targets), index=index) for index in range(3)]
    found = forecast(config, stack, check_shards(stack, sources), trips=2)
    adapters = stack.block_bytes()
    bases = 0 if at_hand else sum(stack.part_bytes()[len(stack) :])
    assert [one.bytes_pulled for one in found.visits[:3]] == [sum(adapters) + bases] * 3
    assert [one.bytes_pulled for one in found.visits[3:5]] == [0, sum(adapters[:2])]
    whole = sum(stack.part_bytes())
    assert {one.cost.shared_bytes for one in found.visits[:3]} == {whole - adapters[0]}


WIDE = {
    "model_type": "llama",
    "vocab_size": 600,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}


# So many that scores of all positions are not made at once.
MANY = 16_384


class Drawn:
    """Eight rows of 48 random tokens."""

    inputs, targets = np.random.default_rng(0).integers(0, 600, (2, 8, 48))

    def __len__(self):
        return len(self.inputs)

    def batch(self, rows):
        return self.inputs[rows], self.targets[rows]


def after_visit(trained, **training):
    """Return all tensors of a network with adapters after a visit, and the peak of that."""
    stack = filled({"config": WIDE, "lora": {"rank": 4}})
    settings = recipe({}, training={"batch_size": 4, "epochs": 2, **training}).config.training

    def work():
        train_visit(
            stack,
            Drawn(),
            trained=trained,
            learning_rate=0.1,
            seed=0,
            training=settings,
            objective=Objective(LossConfig(logit_adjustment=0.0, distillation=0.0)),
        )

    peak = peak_bytes(work)
    return {(i, n): one for i in range(4) for n, one in stack.tensors(i).items()}, peak


@pytest.mark.parametrize("trained", [(0, 1), (1, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("frozen_dtype", ["model", "bfloat16"])
def test_bases_that_come_and_go_give_the_bits_of_those_that_stay(trained, frozen_dtype):
    common = {"frozen_dtype": frozen_dtype, "suffix": "recompute"}
    stay, _ = after_visit(trained, **common)
    come, _ = after_visit(trained, **common, span="recompute", residency="stream")
    assert [key for key, one in stay.items() if not torch.equal(one, come[key])] == []


def test_where_bases_come_and_go_none_has_a_copy_in_another_precision():
    common = {"frozen_dtype": "bfloat16", "span": "recompute", "micro_batch": 1}
    _, stay = after_visit((0, 1, 2, 3), **common)
    _, come = after_visit((0, 1, 2, 3), **common, residency="stream")
    stack = filled({"config": WIDE, "lora": {"rank": 4}})
    # In half of float32's bytes; the last block's stays, and one is at work.
    bases = [sum(one.nbytes for one in stack.base(block).values()) // 2 for block in range(4)]
    assert stay - come > bases[1]
    assert come < stay


def change_of_adapters(trained, *, loss, **training):
    """Return how a visit changes what trains, and what it and evaluation say after it."""
    stack = filled({"config": {**WIDE, "vocab_size": MANY}, "lora": {"rank": 4}})
    settings = recipe({}, training={"batch_size": 8, "epochs": 2, **training}).config.training
    before = {name: one.detach().clone() for name, one in trainable(stack).items()}
    outcome = train_visit(
        stack,
        Drawn(),
        trained=trained,
        learning_rate=0.3,
        seed=0,
        training=settings,
        objective=Objective(loss),
    )
    change = torch.cat(
        [(one.detach() - before[n]).flatten() for n, one in trainable(stack).items()]
    )
    judged = evaluate(stack, Drawn(), task=cross_entropy, batch_size=4)
    return change, (outcome.loss, outcome.accuracy, judged.loss, judged.accuracy)


@pytest.mark.parametrize(
    ("trained", "training", "teacher"),
    [
        ((0, 1, 2, 3), {}, None),
        ((0, 3), {"suffix": "recompute", "micro_batch": 4}, "top_k"),
        ((1, 2), {"suffix": "lean"}, "last_hidden"),
        ((1, 2), {"residency": "stream", "span": "recompute"}, "top_k"),
        ((0, 1, 2, 3), {"residency": "stream", "span": "recompute"}, "last_hidden"),
    ],
)
def test_scores_that_are_made_some_positions_at_a_time_train_the_same(
    trained, training, teacher, monkeypatch
):
    loss = LossConfig(distillation=0.5 if teacher else 0.0, teacher=teacher or "logits")
    change, said = change_of_adapters(trained, loss=loss, **training)
    for module in ("head", "evaluate"):
        monkeypatch.setattr(f"ray_snake.engine.{module}.is_wide", lambda *_: False)
    whole, other = change_of_adapters(trained, loss=loss, **training)
    assert float(whole.norm()) > 0
    assert float((change - whole).norm()) <= 1e-4 * float(whole.norm())
    assert said == pytest.approx(other, rel=1e-4)


def test_no_scores_of_all_positions_are_there_where_the_head_is_joined_to_a_layer():
    stack = filled({"config": {**WIDE, "vocab_size": MANY}, "lora": {"rank": 4}})
    assert [stack.block_of(stage) for stage in range(stack.scoring + 1)] == [0, 1, 2, 3, 3]
    settings = recipe({}, training={"batch_size": 8, "steps": 1}).config.training

    def work():
        train_visit(
            stack,
            Drawn(),
            trained=(3,),
            learning_rate=0.1,
            seed=0,
            training=settings,
            objective=Objective(LossConfig(distillation=0.0)),
        )

    scores_of_all = 8 * 48 * MANY * 4
    assert peak_bytes(work) < 2 * scores_of_all


@pytest.mark.parametrize("trained", [(0, 3), (2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"suffix": "recompute"},
        {"residency": "stream"},
        {"frozen_dtype": "bfloat16", "micro_batch": 1},
        {"residency": "stream", "frozen_dtype": "bfloat16", "micro_batch": 2},
        {"span": "recompute"},
        {"residency": "stream", "frozen_dtype": "bfloat16", "span": "recompute"},
    ],
    ids=["eager", "recompute", "stream", "bf16 parts", "stream bf16 parts", "span", "all stream"],
)
def test_a_visit_takes_about_the_memory_that_is_predicted(trained, training):
    assert 0.85 < predicted_over_measured(trained, tokens=600, **training) < 1.25


@pytest.mark.parametrize("trained", [(0, 3), (2,), (0, 1, 2, 3)])
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"frozen_dtype": "bfloat16", "suffix": "recompute", "micro_batch": 2},
        {"residency": "stream", "frozen_dtype": "bfloat16", "span": "recompute"},
    ],
    ids=["eager", "bf16 parts", "all stream"],
)
def test_so_it_does_where_scores_are_made_some_positions_at_a_time(trained, training):
    assert 0.85 < predicted_over_measured(trained, tokens=MANY, **training) < 1.25


def predicted_over_measured(trained, *, tokens, **training):
    """Return the predicted peak of a visit over what torch allocates in it."""
    options = {"config": {**WIDE, "vocab_size": tokens}, "lora": {"rank": 4}}
    settings = recipe(
        options, training={"optimizer": "adamw", "batch_size": 4, "steps": 3, **training}
    ).config.training
    loss = LossConfig(logit_adjustment=0.0, distillation=0.0)
    costs, _ = profile_blocks(recipe(options).skeleton(), (48,), integer_inputs=True, batch=1)
    predicted = predict_visit(
        Visit(number=1, trip=1, node=0, span=Span(trained[0], trained[0] + 1), trained=trained),
        costs,
        rows=8,
        steps=3,
        training=settings,
        loss=loss,
    ).private_bytes
    stack = filled(options)

    def work():
        train_visit(
            stack,
            Drawn(),
            trained=trained,
            learning_rate=1e-3,
            seed=0,
            training=settings,
            objective=Objective(loss),
        )

    return predicted / peak_bytes(work)
