import glob
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_snake.config import (
    DataConfig,
    LossConfig,
    NodesConfig,
    PartitionConfig,
    SnakeConfig,
    SnakeSection,
    TrainingConfig,
)
from ray_snake.errors import ConfigError
from ray_snake.settings_tree import Section, takes_none

SHIPPED = sorted(glob.glob(str(Path(__file__).parents[2] / "jobs/configs/*.toml")))
SECTIONS = [
    name
    for name, field in SnakeConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
]


def refusal(tree=None, *settings):
    with pytest.raises(ConfigError) as caught:
        SnakeConfig.from_tree(tree or {}, settings)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: Path(path).name)
def test_shipped_settings_load(path):
    assert isinstance(SnakeConfig.load(path), SnakeConfig)


def test_settings_are_shipped():
    assert "quickstart.toml" in {Path(path).name for path in SHIPPED}


def test_an_unknown_section_suggests_the_nearest():
    assert refusal({"trainig": {}}) == ("config: unknown key 'trainig'; did you mean 'training'?")


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_in_any_section_names_the_section_and_suggests_the_nearest(section):
    field = SnakeConfig.model_fields[section]
    known = next(iter(field.annotation.model_fields))
    assert refusal({section: {known + "x": 1}}) == (
        f"{section}: unknown key '{known}x'; did you mean '{known}'?"
    )


def test_an_unknown_key_two_levels_down_suggests_the_nearest():
    assert refusal({"data": {"source": "a", "partition": {"sceme": "iid"}}}) == (
        "data.partition: unknown key 'sceme'; did you mean 'scheme'?"
    )


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    known = ", ".join(SnakeSection.model_fields)
    assert refusal({"snake": {"zzzzzz": 1}}) == f"snake: unknown key 'zzzzzz'; known keys: {known}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "x", 'seed: Input should be a valid integer (got "x"); correct this value'),
        ("seed", True, "seed: Input should be a valid integer (got true); correct this value"),
        ("snake.trips", 1.5, "snake.trips: Input should be a valid integer (got 1.5)"),
        ("snake", 3, "snake: Input should be an object (got 3)"),
        ("snake.train_first", 1, "snake.train_first: Input should be a valid boolean (got 1)"),
        ("model.name", 3, "model.name: Input should be a valid string (got 3)"),
        ("model.options", [], "model.options: Input should be an object (got [])"),
        ("data.shards", [1], "data.shards: Input should be a valid string (got [1])"),
        ("nodes.gpus", "all", 'nodes.gpus: Input should be a valid number (got "all")'),
        (
            "training.clip_norm",
            "of",
            'training.clip_norm: Input should be a valid number (got "of"',
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_key_and_value(key, value, message):
    tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    text = refusal(tree)
    assert text.startswith(f"{key}: ")
    assert text.endswith("; correct this value")
    assert text.startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("snake.trips", 0, "greater than 0"),
        ("snake.span_width", -2, "greater than 0"),
        ("training.learning_rate", 0.0, "greater than 0"),
        ("training.learning_rate", float("inf"), "finite"),
        ("training.momentum", 1.5, "less than or equal to 1"),
        ("training.batch_size", 0, "greater than 0"),
        ("training.steps", 0, "greater than 0"),
        ("training.weight_decay", -0.1, "greater than or equal to 0"),
        ("training.weight_decay", float("nan"), "finite"),
        ("loss.distillation", 1.01, "less than or equal to 1"),
        ("loss.temperature", 0, "greater than 0"),
        ("nodes.gpus", -0.5, "greater than or equal to 0"),
        ("failures.visit_timeout_seconds", float("inf"), "finite"),
        ("transport.mode", "zigzag", "'p2p' or 'client_server'"),
        ("training.optimizer", "adam", "'sgd' or 'adamw'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_key_and_bound(key, value, bound):
    section, _, name = key.rpartition(".")
    text = refusal({section: {name: value}} if section else {name: value})
    assert text.startswith(f"{key}: ")
    assert bound in text
    assert text.endswith("; correct this value")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense", "--set nonsense: is not section.key=value; write for example snake.trips=20"),
        ("=3", "--set =3: is not section.key=value; write for example snake.trips=20"),
        ("snake.=3", "--set snake.=3: is not section.key=value; write for example snake.trips=20"),
        (
            'model.options."a=3',
            '--set model.options."a=3: is not section.key=value; write for example snake.trips=20',
        ),
        ("# seed=3", "--set # seed=3: is not section.key=value; write for example snake.trips=20"),
        ("seed.trips=3", "--set seed.trips=3: 'seed' is not a section; check the key"),
        ("snake.tripz=3", "snake: unknown key 'tripz'; did you mean 'trips'?"),
        (
            "snake.trips=",
            'snake.trips: Input should be a valid integer (got ""); correct this value',
        ),
        (
            "seed=2020-01-01",
            'seed: Input should be a valid integer (got "2020-01-01"); correct this value',
        ),
    ],
)
def test_a_bad_set_is_refused_with_key_value_and_remedy(setting, message):
    assert refusal({"seed": 1}, setting) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nodes.each=[{match = 'a'}, {cpus = 1}]", "nodes.each[1].match: is missing; set it"),
        (
            "nodes.each=[{match = 'a', cpus = -1}]",
            "nodes.each[0].cpus: Input should be greater than or equal to 0 (got -1); correct this",
        ),
        (
            "nodes.each=[{match = 'a', cpuz = 1}]",
            "nodes.each[0]: unknown key 'cpuz'; did you mean 'cpus'?",
        ),
        (
            "nodes.each=[{match = 'a', labels = {site = 1}}]",
            "nodes.each[0].labels.site: Input should be a valid string (got 1); correct this value",
        ),
        ("nodes.resources.disk=-1", "nodes.resources.disk: Input should be greater than or equal"),
        ("data.shards=['a', 1]", "data.shards: Input should be a valid string"),
        ("data.mean=[1, 'a']", "data.mean[1]: Input should be a valid number"),
        ("snake.spans=[[0], [1, -2]]", "snake.spans[1][1]: Input should be greater than or equal"),
        (
            "tune.space.'training.learning_rate'.loguniform=[0, 1]",
            'tune.space."training.learning_rate".loguniform: begins at 0; begin above 0',
        ),
        (
            "tune.space.seed.randint=[2, 1]",
            "tune.space.seed.randint: goes from 2 to 1; give low and high",
        ),
        (
            "tune.space.'snake.trips'={}",
            'tune.space."snake.trips": names no values; give one of choice, grid, uniform, logu',
        ),
        ("snake={order = 'random', trips_per_span = 2}", "snake.trips_per_span: 2 goes with order"),
    ],
)
def test_what_is_wrong_within_a_table_or_list_is_named_down_to_its_key(setting, message):
    assert refusal({}, setting).startswith(message)


def test_settings_that_do_not_go_together_are_named():
    assert refusal({}, "training.optimizer_state=carry", "codec.name=int8") == (
        'training.optimizer_state: "carry" goes with codec.name "none", not "int8"; change one of '
        "them"
    )


def test_a_long_value_is_shown_shortened():
    text = refusal({"transport": {"mode": "x" * 500}})
    assert "xxx... " not in text
    assert "xxx...)" in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("setting", "read", "value"),
    [
        ("snake.trips=20", lambda c: c.snake.trips, 20),
        (" snake.trips = 20", lambda c: c.snake.trips, 20),
        ("snake.train_first=true", lambda c: c.snake.train_first, True),
        ("snake.order=diagonal", lambda c: c.snake.order, "diagonal"),
        ('snake.order="diagonal"', lambda c: c.snake.order, "diagonal"),
        ("data.shards=shards/node_*.arrow", lambda c: c.data.shards, "shards/node_*.arrow"),
        ('data.shards=["a", "b"]', lambda c: c.data.shards, ("a", "b")),
        ("storage.uri=s3://bucket/a?x=1", lambda c: c.storage.uri, "s3://bucket/a?x=1"),
        ("model.options={width = 8}", lambda c: c.model.options, {"width": 8}),
        ("model.options.width=8", lambda c: c.model.options, {"width": 8}),
        ("nodes.gpus=0.25", lambda c: c.nodes.gpus, 0.25),
        ("training.learning_rate=1e-3", lambda c: c.training.learning_rate, 1e-3),
        ("training.clip_norm=none", lambda c: c.training.clip_norm, None),
        (
            "model.options.\"a.b\".'c'=1",
            lambda c: c.model.options,
            {"a.b": {"c": 1}},
        ),
        (
            'tune.space."training.learning_rate".uniform=[0.1, 0.5]',
            lambda c: c.tune.space["training.learning_rate"].uniform,
            (0.1, 0.5),
        ),
    ],
)
def test_a_set_takes_toml_values_and_plain_text(setting, read, value):
    assert read(SnakeConfig.from_tree({}, [setting])) == value


def test_a_later_set_wins_over_an_earlier_one_and_over_the_file(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("[snake]\ntrips = 3\nspan_width = 4\n")
    config = SnakeConfig.load(file, ["snake.trips=5", "snake.trips=6"])
    assert (config.snake.trips, config.snake.span_width) == (6, 4)


def test_a_set_leaves_the_callers_tree_alone():
    tree = {"snake": {"trips": 3}}
    SnakeConfig.from_tree(tree, ["snake.trips=5"])
    assert tree == {"snake": {"trips": 3}}


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError) as caught:
        SnakeConfig.load(tmp_path / "gone.toml")
    assert str(caught.value) == (
        f"{tmp_path / 'gone.toml'}: no such file; give the path of a TOML file"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"seed = \n", "is not TOML"),
        (b"seed = 1\nseed = 2\n", "is not TOML"),
        (b"\xff\xfe", "can't be read"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path, content, problem):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        SnakeConfig.load(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: {problem}")
    assert len(text.splitlines()) == 1


def test_the_line_of_a_toml_error_is_named(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("seed = 1\n[snake\n")
    with pytest.raises(ConfigError, match="line 2"):
        SnakeConfig.load(file)


def test_a_folder_is_no_settings_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        SnakeConfig.load(tmp_path)


def test_a_date_in_the_file_is_refused_by_key(tmp_path):
    file = tmp_path / "date.toml"
    file.write_text("[snake]\ntrips = 2020-01-01\n")
    with pytest.raises(ConfigError, match=r"^snake\.trips: .*2020-01-01"):
        SnakeConfig.load(file)


def test_clipping_is_switched_off_by_name_in_the_file(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[training]\nclip_norm = "none"\n')
    assert SnakeConfig.load(file).training.clip_norm is None


NONE_ABLE = [
    f"{section}.{key}"
    for section in SECTIONS
    for key, field in SnakeConfig.model_fields[section].annotation.model_fields.items()
    if takes_none(field)
]


@pytest.mark.parametrize("key", NONE_ABLE)
def test_whatever_may_be_none_is_switched_off_by_name_on_top_of_a_file(key):
    section, _, name = key.partition(".")
    config = SnakeConfig.from_tree({"data": {}}, [f"{key}=none"])
    assert getattr(getattr(config, section), name) is None


def test_the_word_none_stays_a_word_where_it_is_a_value():
    assert SnakeConfig.from_tree({}, ["codec.name=none"]).codec.name == "none"
    assert SnakeConfig.from_tree({}, ["model.options.a=none"]).model.options == {"a": "none"}
    assert {"training.steps", "evaluation.data", "snake.spans"} < set(NONE_ABLE)


def test_a_files_value_is_switched_off_by_name():
    tree = {"evaluation": {"data": "held_out.arrow", "precision": "bf16"}}
    config = SnakeConfig.from_tree(tree, ["evaluation.data=none", "evaluation.precision=none"])
    assert (config.evaluation.data, config.evaluation.precision) == (None, None)


def test_the_constructor_refuses_unknown_keys_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'trips'"):
        SnakeSection(tripz=3)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        SnakeConfig().seed = 2


def test_settings_are_keyword_only():
    with pytest.raises(TypeError):
        SnakeSection("diagonal")


@st.composite
def configs(draw):
    positive = st.floats(1e-9, 1e9)
    return SnakeConfig(
        seed=draw(st.integers(0, 2**70)),
        data=draw(
            st.sampled_from(
                [
                    DataConfig(),
                    DataConfig(shards="a/*.arrow", mean=(0.1, 2.0), std=(1.0, 3.0)),
                    DataConfig(shards=("a", "b")),
                    DataConfig(source="a", partition=PartitionConfig(scheme="dirichlet")),
                ]
            )
        ),
        nodes=NodesConfig(
            gpus=draw(st.just("auto") | st.floats(0, 8)),
            labels=draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)),
        ),
        snake=SnakeSection(trips=draw(st.integers(1, 99)), train_first=draw(st.booleans())),
        training=TrainingConfig(
            learning_rate=draw(positive),
            clip_norm=draw(st.none() | positive),
            steps=draw(st.none() | st.integers(1, 99)),
        ),
        loss=LossConfig(temperature=draw(positive)),
    )


@given(configs())
def test_settings_survive_the_way_through_json(config):
    assert SnakeConfig.from_tree(config.tree()) == config


@given(configs())
def test_reading_back_keeps_the_fingerprint(config):
    back = SnakeConfig.from_tree(config.tree())
    assert back.fingerprint() == config.fingerprint()
    assert back.changed_keys(config) == []


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("seed=7", "seed"),
        ("model.name=mlp", "model.name"),
        ("model.options.width=8", "model.options.width"),
        ("data.shards=a", "data.shards"),
        ("snake.trips=7", "snake.trips"),
        ("training.momentum=0.5", "training.momentum"),
        ("loss.proximal=0.5", "loss.proximal"),
        ("acceptance.max_update_norm=2.0", "acceptance.max_update_norm"),
    ],
)
def test_what_decides_the_weights_changes_the_fingerprint_and_is_named(setting, changed):
    before, after = SnakeConfig(), SnakeConfig.from_tree({}, [setting])
    assert before.fingerprint() != after.fingerprint()
    assert before.changed_keys(after) == [changed]
    assert after.changed_keys(before) == [changed]


def test_a_setting_that_is_new_leaves_the_fingerprint_of_what_goes_without_it():
    class NewerSnake(SnakeSection):
        new: int = 3

    class NewerConfig(SnakeConfig):
        snake: NewerSnake = NewerSnake()

    assert NewerConfig().fingerprint() == SnakeConfig().fingerprint()
    assert NewerConfig.from_tree({}, ["snake.new=4"]).fingerprint() != SnakeConfig().fingerprint()


@pytest.mark.parametrize(
    "setting",
    [
        "nodes.cpus=2.0",
        "failures.node_restarts=9",
        "evaluation.batch_size=7",
        "storage.uri=elsewhere",
    ],
)
def test_what_does_not_decide_the_weights_may_change(setting):
    before, after = SnakeConfig(), SnakeConfig.from_tree({}, [setting])
    assert before != after
    assert before.fingerprint() == after.fingerprint()
    assert before.changed_keys(after) == []


def test_whole_models_are_distilled_only_where_others_are():
    assert refusal({"snake": {"warmup_distillation": 0.4}, "loss": {"distillation": 0.0}}) == (
        "snake.warmup_distillation: 0.4 goes with loss.distillation above 0; set both, or neither"
    )


def test_losses_of_one_epoch_alone_are_not_compared():
    ratio = "acceptance.max_loss_ratio=1.5"
    assert refusal({}, ratio) == (
        "acceptance.max_loss_ratio: 1.5 compares a visit's last epoch with its first, and it has "
        'one alone; set training.epochs to 2 or more, or the ratio to "none"'
    )
    for several in ("training.epochs=2", "training.steps=9"):
        assert SnakeConfig.from_tree({}, [ratio, several]).acceptance.max_loss_ratio == 1.5


def test_every_section_either_decides_the_weights_or_may_change():
    may_change = {"nodes", "transport", "failures", "evaluation", "storage", "tune"}
    assert set(SnakeConfig.DECISIVE) | may_change == set(SnakeConfig.model_fields)


def test_a_glob_of_shards_becomes_the_files_sorted_by_name(tmp_path):
    for name in ("node_2.arrow", "node_0.arrow", "node_1.arrow", "other.txt"):
        (tmp_path / name).touch()
    found = DataConfig(shards=f"{tmp_path}/node_*.arrow").shard_uris()
    assert found == tuple(f"{tmp_path}/node_{i}.arrow" for i in range(3))


def test_a_glob_that_matches_nothing_gives_no_shards(tmp_path):
    assert DataConfig(shards=f"{tmp_path}/*.arrow").shard_uris() == ()


def test_a_list_of_shards_keeps_its_order():
    assert DataConfig(shards=("b", "a")).shard_uris() == ("b", "a")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s3://b/{north,south}.arrow", ("s3://b/north.arrow", "s3://b/south.arrow")),
        ("/d/{08..10}/x", ("/d/08/x", "/d/09/x", "/d/10/x")),
        ("/d/{1..2}/{b,a}", ("/d/1/b", "/d/1/a", "/d/2/b", "/d/2/a")),
        ("/d/{3..1}", ()),
    ],
)
def test_braces_stand_for_files_that_need_not_be_here(pattern, expected):
    assert DataConfig(shards=pattern).shard_uris() == expected


@pytest.mark.parametrize("one", ["folder/one.arrow", "s3://bucket/node_*.arrow"])
def test_one_path_and_uris_are_taken_as_they_are(one):
    assert DataConfig(shards=one).shard_uris() == (one,)


def test_without_shards_there_are_none():
    assert DataConfig().shard_uris() == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"shards": ["a"], "source": "b", "partition": {"nodes": 2}},
            "data: shards and source are both set; keep one of them",
        ),
        (
            {"shards": ["a"], "partition": {"nodes": 2}},
            "data.partition: splits data.source, which is not set; set data.source",
        ),
        (
            {"source": "b"},
            "data.source: needs data.partition; set data.partition.nodes and .scheme",
        ),
    ],
)
def test_shards_and_source_exclude_each_other(data, message):
    assert refusal({"data": data}) == message


def test_staying_with_a_span_goes_with_span_major_only():
    assert refusal({"snake": {"order": "diagonal", "trips_per_span": 2}}) == (
        "snake.trips_per_span: 2 goes with order span_major, not diagonal; set it to 1"
    )


def test_every_setting_says_what_it_is():
    for name in SECTIONS:
        fields = SnakeConfig.model_fields[name].annotation.model_fields
        assert all(field.description for field in fields.values()), name
