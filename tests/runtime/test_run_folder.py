import json

import pytest
from fakes import make_config

from ray_snake.errors import CheckpointError, ConfigError, StorageError
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.run_folder import RunFolder, choose_run

NODES = ("north", "south")


def as_given(model):
    return model.options


def runs(storage, *names):
    for name in names:
        RunFolder.create(storage.child(name), make_config(), NODES, custom_model=False)


def chosen(storage, name=None, *, resume=False):
    return choose_run(storage, "digits", name, resume=resume).uri.removeprefix(f"{storage.uri}/")


def test_the_first_run_is_called_after_its_settings(storage):
    assert chosen(storage) == "digits"


def test_later_runs_are_numbered_after_the_highest(storage):
    runs(storage, "digits", "digits-2", "digits-10", "digits-old", "other-77")
    assert chosen(storage) == "digits-11"


def test_resuming_without_a_name_takes_the_newest(storage):
    runs(storage, "digits", "digits-2", "digits-10", "digits-old", "other-77")
    assert chosen(storage, resume=True) == "digits-10"


def test_a_folder_that_holds_no_run_does_not_count(storage):
    runs(storage, "digits")
    storage.write("digits-2/notes.txt", b"mine")
    assert chosen(storage) == "digits-2"
    assert chosen(storage, resume=True) == "digits"


def test_a_named_run_is_new_or_resumed(storage):
    runs(storage, "mine")
    assert chosen(storage, "yours") == "yours"
    assert chosen(storage, "mine", resume=True) == "mine"


def test_a_name_may_lead_into_a_folder(storage):
    assert chosen(storage, "mine/first") == "mine/first"
    runs(storage, "mine/first")
    assert chosen(storage, "mine/first", resume=True) == "mine/first"
    with pytest.raises(StorageError, match=r"--name mine/first: that run exists"):
        chosen(storage, "mine/first")


def test_choosing_makes_no_files(storage, tmp_path):
    chosen(storage)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_name_is_refused_with_a_remedy(storage):
    runs(storage, "mine")
    with pytest.raises(StorageError, match=r"--name mine: that run exists .*--resume"):
        chosen(storage, "mine")


def test_resuming_an_unknown_name_lists_the_runs(storage):
    runs(storage, "mine", "yours")
    with pytest.raises(StorageError, match=r"--name their.*choose one of: mine, yours"):
        chosen(storage, "their", resume=True)


def test_resuming_where_there_is_no_run_says_so(storage):
    with pytest.raises(StorageError, match=r"--resume: there is no run 'digits'"):
        chosen(storage, resume=True)


def test_settings_and_nodes_are_read_back(storage):
    config = make_config(nodes={"threads": 2}, data={"mean": [0.5]})
    RunFolder.create(storage, config, NODES, custom_model=False)
    folder = RunFolder.open(storage.uri)
    assert folder.config == config
    assert folder.nodes == NODES
    folder.refuse_custom_model()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"holds no run"):
        RunFolder.open(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"{", b"{}", b"[]", b"\xff", b'{"format": 99}', b'{"format": 1, "settings": {}}']
)
def test_damaged_settings_are_named(storage, content):
    storage.write("run.json", content)
    with pytest.raises(CheckpointError, match=r"run\.json of .* can't be read"):
        RunFolder.open(storage.uri).config  # noqa: B018 - reading it is what is tested


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ({"name": "cnn", "options": {"width": 8}}, "group"),
        ({"name": "vgg11", "options": {"norm": "none"}}, "none"),
        ({"name": "mlp", "options": {"inputs": 4}}, None),
    ],
)
def test_a_run_of_format_1_has_the_norm_that_was_its_networks_default(storage, model, norm):
    RunFolder.create(storage, make_config(), NODES, custom_model=False)
    written = json.loads(storage.read("run.json"))
    written["format"] = 1
    written["settings"]["model"] = model
    storage.write("run.json", json.dumps(written).encode())
    assert RunFolder.open(storage.uri).config.model.options.get("norm") == norm


def test_a_run_of_today_has_todays_default(storage):
    config = make_config(model={"name": "cnn", "options": {"width": 8}})
    assert RunFolder.create(storage, config, NODES, custom_model=False).config == config


def test_a_default_of_a_model_that_changed_since_is_a_setting_that_differs(storage):
    def now(model):
        return {"norm": "new", **model.options}

    started = make_config(model={"options": {"norm": "old"}})
    RunFolder.create(storage, started, NODES, custom_model=False)
    folder = RunFolder.open(storage.uri)
    named = make_config(model={"options": now(make_config().model)})
    with pytest.raises(ConfigError, match=r"other settings: model\.options\.norm"):
        folder.check_resumable(named, NODES, now)
    folder.check_resumable(started, NODES, now)


def test_a_run_that_names_no_defaults_is_resumed_with_those_of_today(storage):
    def now(model):
        return {"norm": "new", **model.options}

    folder = RunFolder.create(storage, make_config(), NODES, custom_model=False)
    folder.check_resumable(make_config(model={"options": {"norm": "new"}}), NODES, now)
    with pytest.raises(ConfigError, match=r"other settings: model\.options\.norm"):
        folder.check_resumable(make_config(model={"options": {"norm": "old"}}), NODES, now)


def test_an_option_that_the_model_no_longer_has_is_a_setting_that_differs(storage):
    started = make_config(model={"options": {"gone": 1}})
    folder = RunFolder.create(storage, started, NODES, custom_model=False)
    recipe = Recipe(config=make_config())
    named = make_config(model={"options": recipe.model_options(recipe.config.model)})
    with pytest.raises(ConfigError, match=r"other settings: .*model\.options\.gone"):
        folder.check_resumable(named, NODES, recipe.model_options)


def test_a_run_of_another_model_is_not_asked_for_its_options(storage):
    folder = RunFolder.create(
        storage, make_config(model={"name": "gone:model"}), NODES, custom_model=False
    )
    with pytest.raises(ConfigError, match=r"other settings: model\.name"):
        folder.check_resumable(make_config(), NODES, Recipe(config=make_config()).model_options)


def test_a_custom_model_can_not_be_built_from_settings(storage):
    folder = RunFolder.create(storage, make_config(), NODES, custom_model=True)
    with pytest.raises(ConfigError, match=r"Python function"):
        folder.refuse_custom_model()


def test_a_run_without_weights_says_how_to_get_them(storage):
    folder = RunFolder.create(storage, make_config(), NODES, custom_model=False)
    with pytest.raises(CheckpointError, match=r"--resume"):
        folder.states()


def test_what_decides_the_weights_must_stay_the_same(storage):
    folder = RunFolder.create(storage, make_config(), NODES, custom_model=False)
    changed = make_config(training={"batch_size": 7, "momentum": 0.5})
    with pytest.raises(ConfigError) as caught:
        folder.check_resumable(changed, NODES, as_given)
    assert "training.batch_size, training.momentum" in str(caught.value)
    with pytest.raises(ConfigError, match=r"the nodes"):
        folder.check_resumable(make_config(), ("north",), as_given)


def test_what_does_not_decide_the_weights_may_change(storage):
    folder = RunFolder.create(storage, make_config(), NODES, custom_model=False)
    changed = make_config(
        nodes={"nodes_per_actor": 2}, failures={"recoveries": 9}, storage={"uri": "elsewhere"}
    )
    folder.check_resumable(changed, NODES, as_given)
