"""Bad input ends before any work starts, with one line that says what is wrong and what to do."""

import os
import signal
import socket
import subprocess

import numpy as np
import pyarrow as pa
import pytest
from workplaces import COMMAND, DIGITS, MODEL, SHORT, TIMEOUT_SECONDS

from ray_snake.config import SnakeConfig
from ray_snake.data import make_table, write_shard
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.storage import Storage

DIGITS_CONFIG = MODEL + DIGITS + SHORT
SHARD_CONFIG = MODEL + '[data]\nshards = ["shard.arrow"]\n' + SHORT


def refusal(workplace, *arguments, **environment):
    """Call the command with bad input; return its line once all else about it is checked."""
    before = sorted(workplace.runs.rglob("*"))
    ray_folder = workplace.folder / "ray"
    ended = workplace.call_forked(*arguments, RAY_TMPDIR=str(ray_folder), **environment)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("ray-snake: ")
    assert "Traceback" not in line
    assert sorted(workplace.runs.rglob("*")) == before
    assert not ray_folder.exists()
    assert list(workplace.home.iterdir()) == []
    return line


def assert_says(line, *texts):
    for text in texts:
        assert text in line


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ("snake.tripz=3", ("snake: ", "'tripz'", "did you mean 'trips'?")),
        ("snak.trips=3", ("'snak'", "did you mean 'snake'?")),
        ("training.batch_size=many", ("training.batch_size: ", '"many"', "integer")),
        ("training.batch_size=0", ("training.batch_size: ", "got 0", "greater than 0")),
        ("snake.order=zigzag", ("snake.order: ", "'zigzag'", "span_major")),
        ("snake.spans=[[0, 9]]", ("snake.spans: ", "no block 9", "use numbers from 0 to")),
        ("strategy=fedavgg", ("strategy: ", "'fedavgg'", "did you mean 'fedavg'?")),
        ("strategy=fedprox", ("loss.proximal: is 0", "set it")),
        ("strategy=local", ("strategy: ", "'local'", "one node's rows")),
        ("strategy=nowhere:Thing", ("strategy: ", "'nowhere:Thing'", "PYTHONPATH")),
        ("loss.name=hinge", ("loss.name: ", "'hinge'", "cross_entropy")),
        ("trips", ("--set trips", "section.key=value")),
    ],
)
def test_a_refused_setting(workplace, setting, texts):
    config = workplace.write(DIGITS_CONFIG)
    assert_says(refusal(workplace, "train", config, "--set", setting), *texts)


def test_a_setting_refused_in_the_file(workplace):
    config = workplace.write("sed = 1\n" + DIGITS_CONFIG)
    assert_says(refusal(workplace, "train", config), "'sed'", "did you mean 'seed'?")


def test_a_file_that_is_not_toml(workplace):
    config = workplace.write("seed = \n")
    assert_says(refusal(workplace, "train", config), "digits.toml: is not TOML", "line 1")


def test_a_missing_settings_file(workplace):
    assert_says(refusal(workplace, "train", "none.toml"), "none.toml: no such file", "a TOML file")


def test_a_pattern_that_matches_no_file(workplace):
    config = workplace.write(MODEL + '[data]\nshards = "shards/*.arrow"\n')
    assert_says(
        refusal(workplace, "train", config),
        "data.shards: 'shards/*.arrow' matches no file",
        "data.source",
    )


def test_settings_without_data(workplace):
    config = workplace.write(MODEL)
    assert_says(refusal(workplace, "train", config), "data.shards: no nodes", "data.source")


def pictures(rows=8, shape=(1, 8, 8), **values):
    inputs = values.get("inputs", np.zeros((rows, *shape), dtype=np.float32))
    labels = values.get("labels", np.arange(rows, dtype=np.int64) % 10)
    return make_table(inputs, labels)


def with_nan():
    inputs = np.zeros((8, 1, 8, 8), dtype=np.float32)
    inputs[5, 0, 3, 3] = np.nan
    return pictures(inputs=inputs)


@pytest.mark.parametrize(
    ("table", "texts"),
    [
        (lambda: pictures(rows=0), ("has no rows", "leave")),
        (
            lambda: pictures().rename_columns(["input", "digit"]),
            ("no column 'label'", "digit", "data.label"),
        ),
        (
            lambda: pictures(labels=np.full(8, 10, dtype=np.int64)),
            ("label 10 in row 0", "10 classes", "correct the label"),
        ),
        (with_nan, ("column 'input'", "NaN", "row 5", "drop that row")),
        (
            lambda: pictures(shape=(3, 8, 8)),
            ("(3, 8, 8)", "don't fit the model", "'conv1'", "model.options"),
        ),
        (
            lambda: pictures(labels=np.zeros(8, dtype=np.float32)),
            ("labels (float32 of shape ())", "don't fit the loss", "choose another loss.name"),
        ),
        (
            lambda: pa.table({"input": ["a"], "label": [1]}),
            ("column 'input'", "string", "data.input"),
        ),
    ],
    ids=["empty", "no labels", "unknown class", "NaN", "other shape", "targets", "text"],
)
def test_a_shard_that_can_not_be_used(workplace, table, texts):
    write_shard(workplace.folder / "shard.arrow", table())
    config = workplace.write(SHARD_CONFIG)
    assert_says(refusal(workplace, "train", config), "shard", *texts)


def test_a_missing_shard(workplace):
    config = workplace.write(SHARD_CONFIG)
    assert_says(refusal(workplace, "train", config), "shard.arrow", "no such file", "check")


def test_held_out_rows_that_are_not_there(workplace):
    config = workplace.write(DIGITS_CONFIG)
    line = refusal(workplace, "train", config, "--set", "evaluation.data=held_out.arrow")
    assert_says(line, "held_out.arrow", "no such file", "check")


def test_a_span_wider_than_the_network(workplace):
    config = workplace.write(DIGITS_CONFIG)
    line = refusal(workplace, "train", config, "--set", "snake.span_width=9")
    assert_says(line, "snake.span_width: 9 blocks", "network's 5", "set it to 5 or less")


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ("model.options.wdith=8", ("model.options.wdith: ", "did you mean 'width'?")),
        ("model.options.width=wide", ("model.options.width: ", "'wide'", "integer")),
        ("model.name=cmn", ("model.name: ", "'cmn'", "did you mean 'cnn'?")),
    ],
)
def test_a_model_that_can_not_be_built(workplace, setting, texts):
    config = workplace.write(DIGITS_CONFIG)
    assert_says(refusal(workplace, "train", config, "--set", setting), *texts)


def test_a_storage_that_does_not_answer(workplace):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        uri = f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http"
        config = workplace.write(DIGITS_CONFIG)
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "a-secret"}
        line = refusal(workplace, "train", config, "--storage", uri, **keys)
    assert_says(line, "s3://bucket/runs: could not write to this location", "check the address")
    assert "a-secret" not in line


def test_a_storage_folder_that_is_a_file(workplace):
    (workplace.folder / "taken").write_text("")
    config = workplace.write(DIGITS_CONFIG)
    line = refusal(workplace, "train", config, "--storage", "taken")
    assert_says(line, "taken: could not write to this location", "check")


def test_resuming_what_was_never_started(workplace):
    config = workplace.write(DIGITS_CONFIG)
    line = refusal(workplace, "train", config, "--resume")
    assert_says(line, "--resume: there is no run 'digits' in ", "--name")
    line = refusal(workplace, "train", config, "--resume", "--name", "mine")
    assert_says(line, "--name mine: there is no such run in ", "leave --resume out")


def test_a_name_that_is_taken(workplace):
    storage = Storage(str(workplace.runs)).child("mine")
    config = workplace.write(DIGITS_CONFIG)
    settings = SnakeConfig.load(workplace.folder / config)
    RunFolder.create(storage, settings, ("a",), custom_model=False)
    line = refusal(workplace, "train", config, "--name", "mine")
    assert_says(line, "--name mine: that run exists in ", "--resume")


def test_resuming_with_other_settings(workplace):
    storage = Storage(str(workplace.runs)).child("mine")
    config = workplace.write(DIGITS_CONFIG)
    settings = SnakeConfig.load(workplace.folder / config)
    nodes = ("digits/train[0]", "digits/train[1]")
    RunFolder.create(storage, settings, nodes, custom_model=False)
    line = refusal(
        workplace, "train", config, "--resume", "--name", "mine", "--set", "snake.trips=7"
    )
    assert_says(line, "mine: was started with other settings: snake.trips; ", "--name")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["trian"], ("'trian'", "ray-snake --help")),
        (["train"], ("CONFIG", "ray-snake train --help")),
        (["train", "digits.toml", "--resmue"], ("'--resmue'", "--resume")),
        (["train", "digits.toml", "--name"], ("--name", "argument", "--help")),
        (["export", "runs/x", "--format", "onnx", "--out", "x"], ("'onnx'", "safetensors")),
        (["evaluate", "runs/x"], ("runs/x: holds no run", "give a run's folder")),
        (["export", "runs/x", "--out", "m.safetensors"], ("runs/x: holds no run", "give a run's")),
        (["export", "runs/x", "--out", "s3://b/m"], ("--out s3://b/m: is no local path; ",)),
        (["report", "runs/x", "--out", "s3://b/m"], ("--out s3://b/m: is no local path; ",)),
        (["simulate", "digits.toml", "--plot", "gs://b/m.png"], ("--plot gs://b/m.png: is no ",)),
        (["simulate", "digits.toml", "--out", "gs://b/m"], ("--out gs://b/m: is no local path",)),
        (
            ["submit", "digits.toml", "--stop", "a-1", "--address", "http://127.0.0.1:9"],
            ("--stop: stops a job that is there, and digits.toml", "leave out one of them"),
        ),
        (
            ["export", "runs/x", "--out", "none/m"],
            ("--out none/m", "is in no folder: none is not there"),
        ),
        (["export", "runs/x", "--out", "/proc/m"], ("--out /proc/m: ", "name a new file")),
        (
            [
                *("submit", "digits.toml", "--address", "http://127.0.0.1:9", "--storage", "/runs"),
                *("--runtime-env", "bytes.yaml"),
            ],
            ("bytes.yaml: can't be read", "utf-8", "--runtime-env"),
        ),
    ],
)
def test_a_command_that_is_written_wrong(workplace, arguments, texts):
    workplace.write(DIGITS_CONFIG)
    (workplace.folder / "bytes.yaml").write_bytes(b"\xff")
    assert_says(refusal(workplace, *arguments), *texts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "runs/x", "--data", ""], "the argument after '--data': is empty; "),
        (["doctor", "--storage", ""], "the argument after '--storage': is empty; "),
        (["doctor", "--storage="], "--storage: is empty; "),
        (["data", "partition", "", "--out", "x"], "the argument after 'partition': is empty; "),
        (["submit", "digits.toml", "--name", ""], "the argument after '--name': is empty; "),
        (["tune", "digits.toml", "--name", ""], "the argument after '--name': is empty; "),
        ([""], "the first argument: is empty; "),
    ],
)
def test_an_empty_argument_is_not_taken_for_none(workplace, arguments, said):
    assert_says(refusal(workplace, *arguments), f"ray-snake: {said}", "leave it out")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plan", "ray-snake: interrupted"),
        ("train", "ray-snake: interrupted; the same command with --resume goes on"),
    ],
)
def test_an_interrupted_command_says_whether_it_can_go_on(workplace, command, said):
    settings = workplace.folder / "settings.toml"
    os.mkfifo(settings)
    process = subprocess.Popen(
        [COMMAND, command, settings],
        cwd=workplace.folder,
        env=workplace.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    # Opened once the command has it open too: it waits for what is written.
    with settings.open("w"):
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, text.strip()) == (130, said)


def test_more_than_the_machine_has(workplace):
    config = workplace.write(DIGITS_CONFIG)
    # What an embedded cluster has is known once it runs; no run is made for it.
    ended = workplace.call("train", config, "--set", "nodes.cpus=1000")
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert_says(line, "ray-snake: nodes.cpus: 1 node actors with 1000 each", "lower nodes.cpus")
    assert not workplace.runs.exists()
