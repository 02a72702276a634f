"""What a sweep can't do is said in one line before any trial starts."""

import numpy as np
import pytest
from workplaces import DIGITS, MODEL, SHORT

from ray_snake.data import make_table, write_shard

SWEEP = MODEL + DIGITS + SHORT
TARGETS = """
[model]
options = { channels = 1, classes = 1, width = 8 }
[data]
shards = ["a.arrow", "b.arrow"]
[evaluation]
data = "a.arrow"
[loss]
name = "mse"
"""


def axes(text, **axes):
    """Return settings with these values to choose from."""
    lines = [f'"{key}" = {{ choice = {values} }}' for key, values in axes.items()]
    return text + "[tune.space]\n" + "\n".join(lines) + "\n"


def refusal(workplace, text, *arguments):
    """Call the command with a sweep that can't be; return its line."""
    config = workplace.write(text, "sweep.toml")
    ended = workplace.call_forked(
        "tune", config, *arguments, RAY_TMPDIR=str(workplace.folder / "ray")
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert not workplace.runs.exists()
    assert not (workplace.folder / "ray").exists()
    return line


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("snake.order", '["span_major", "zigzag"]', "there is no order 'zigzag'"),
        ("strategy", '["snake", "fedavgg"]', "did you mean 'fedavg'?"),
        ("model.options.wdith", "[8]", "did you mean 'width'?"),
        ("snake.span_width", "[1, 99]", "snake.span_width: 99 blocks"),
        ("snake.heads", "[1, 99]", "snake.heads: 99"),
        ("data.partition.nodes", "[2, 100000]", "100000"),
        ("evaluation.data", '["builtin://digits/test", "none.arrow"]', "could not open none.arrow"),
        ("data.label", '["label", "digit"]', "no column 'digit'"),
        ("tune.samples", "[1, 2]", "is the sweep's own setting, not a trial's; set it once"),
        ("tune.seed", "[1, 2]", "is the sweep's own setting"),
        ("storage.uri", '["a", "b"]', "is the sweep's own setting"),
    ],
)
def test_a_value_that_no_trial_can_have_is_refused_by_its_axis(workplace, key, values, words):
    line = refusal(workplace, axes(SWEEP, **{key: values}))
    assert line.startswith(f'ray-snake: tune.space."{key}": ')
    assert words in line


def write_targets(workplace, *names, shape=(1, 8, 8)):
    rows = make_table(np.zeros((8, *shape), np.float32), np.ones((8, 1), np.float32))
    for name in names:
        write_shard(workplace.folder / name, rows)


def test_targets_are_not_ranked_by_accuracy(workplace):
    write_targets(workplace, "a.arrow", "b.arrow")
    line = refusal(workplace, axes(TARGETS, seed="[1, 2]"))
    assert line.startswith("ray-snake: tune.metric: 'accuracy' is for classes and tokens, and the ")
    assert line.endswith('labels of a are numbers; set it to "loss"')


def test_every_shard_is_looked_at(workplace):
    write_targets(workplace, "a.arrow")
    write_targets(workplace, "b.arrow", shape=(3, 8, 8))
    line = refusal(workplace, axes(TARGETS, seed="[1, 2]"), "--set", "tune.metric=loss")
    assert "b.arrow" in line
    assert "(3, 8, 8)" in line


def test_settings_are_looked_at_as_those_of_a_run_are(workplace):
    write_targets(workplace, "a.arrow", "b.arrow")
    line = refusal(
        workplace,
        axes(TARGETS, seed="[1, 2]"),
        *("--set", "tune.metric=loss", "--set", "loss.teacher=top_k"),
    )
    assert line.startswith("ray-snake: loss.teacher: 'top_k' is for classes")


@pytest.mark.parametrize("option", ["--name", "--storage"])
def test_an_empty_option_is_not_taken_for_none(workplace, option):
    line = refusal(workplace, axes(SWEEP, seed="[1, 2]"), option, "")
    assert "''" in line or "empty" in line
