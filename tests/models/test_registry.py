import json
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from ray_snake.errors import ModelError
from ray_snake.models.registry import all_options, build_model, model_names, register


@pytest.fixture
def user_module(monkeypatch):
    module = types.ModuleType("clinic_models")
    monkeypatch.setitem(sys.modules, "clinic_models", module)
    return module


def failing(name, options):
    with pytest.raises(ModelError) as caught:
        build_model(name, options)
    return caught.value


def test_lists_the_networks_of_the_package_by_name():
    assert model_names() == ("cnn", "decoder", "huggingface", "mlp", "resnet18", "vgg11")


def test_unknown_name_suggests_the_nearest_and_lists_all():
    error = failing("vgg12", {})
    assert error.subject == "model.name"
    assert "did you mean 'vgg11'?" in str(error)
    assert "cnn, decoder, huggingface, mlp, resnet18, vgg11" in str(error)


def test_unknown_option_suggests_the_nearest():
    error = failing("vgg11", {"wdith": 0.5})
    assert error.subject == "model.options.wdith"
    assert "did you mean 'width'?" in str(error)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("vgg11", "width", "x"),
        ("vgg11", "width", 0.0),
        ("vgg11", "width", float("nan")),
        ("cnn", "classes", 0),
        ("cnn", "classes", True),
        ("cnn", "width", 2.5),
        ("resnet18", "norm", "layer"),
        ("mlp", "hidden", [16, -1]),
    ],
)
def test_refused_value_names_its_key_and_shows_itself(name, key, value):
    error = failing(
        name, {key: value, "inputs": 4, "classes": 2} if name == "mlp" else {key: value}
    )
    assert error.subject == f"model.options.{key}"
    assert repr(value) in error.problem


def test_missing_option_is_named():
    assert failing("mlp", {"classes": 3}).subject == "model.options.inputs"


def test_lists_from_toml_stand_for_tuples():
    model = build_model("mlp", {"inputs": 4, "classes": 2, "hidden": [8, 8, 8]})
    assert len(model) == 4


def test_builds_from_an_import_path_with_checked_options(user_module):
    def tiny(*, width: int = 2):
        return [nn.Linear(2, width), nn.Linear(width, 2)]

    user_module.tiny = tiny
    blocks = build_model("clinic_models:tiny", {"width": 5})
    assert [block.out_features for block in blocks] == [5, 2]
    assert failing("clinic_models:tiny", {"witdh": 5}).subject == "model.options.witdh"
    assert failing("clinic_models:tiny", {"width": "5"}).subject == "model.options.width"


def test_import_path_may_take_any_option_and_types_that_json_lacks(user_module):
    def linear(*, dtype: torch.dtype, **others):
        return nn.Linear(2, others["outputs"], dtype=dtype)

    user_module.linear = linear
    model = build_model("clinic_models:linear", {"dtype": torch.float64, "outputs": 3})
    assert model.weight.dtype == torch.float64
    assert model.out_features == 3


def test_unresolvable_annotations_leave_values_unchecked(user_module):
    def typed(*, width: "OnlyForTheTypeChecker" = 3):  # noqa: F821 - on purpose
        return nn.Linear(2, width)

    user_module.typed = typed
    assert build_model("clinic_models:typed", {"width": 4}).out_features == 4


def test_all_options_are_those_given_and_the_defaults(tmp_path):
    assert all_options("mlp", {"inputs": 4, "classes": 2}) == {
        "inputs": 4,
        "classes": 2,
        "hidden": [128, 64],
    }
    assert all_options("cnn", {"width": 8})["norm"] == "batch"
    given = {"model": str(tmp_path), "lora": {"rank": 2}}
    assert all_options("huggingface", given) == {
        "model": str(tmp_path),
        "task": "language_modelling",
        "dtype": "float32",
        "lora": {"rank": 2, "alpha": 16.0, "dropout": 0.0},
    }


def test_all_options_give_the_same_network_again(user_module):
    def odd(
        *, sizes=(3, 4), dtype=torch.float64, scale: float | None = None, **others: int
    ) -> nn.Module:
        assert isinstance(sizes, tuple)
        assert scale is None
        return nn.Linear(*sizes, dtype=dtype, bias=bool(others))

    user_module.odd = odd
    for name, given in [
        ("cnn", {}),
        ("mlp", {"inputs": 4, "classes": 2}),
        ("decoder", {"vocabulary": 11}),
        ("clinic_models:odd", {}),
        ("clinic_models:odd", {"bias": 1}),
    ]:
        complete = all_options(name, given)
        assert all_options(name, complete) == complete
        assert json.loads(json.dumps(complete)) == complete
        assert given.items() <= complete.items()
        networks = []
        for options in (given, complete):
            torch.manual_seed(1)
            networks.append(build_model(name, options).state_dict())
        torch.testing.assert_close(*networks, rtol=0, atol=0)


def test_all_options_refuse_what_building_refuses():
    for name, options in [("cmn", {}), ("cnn", {"widht": 8}), ("cnn", {"width": "x"}), ("mlp", {})]:
        with pytest.raises(ModelError) as caught:
            all_options(name, options)
        assert str(caught.value) == str(failing(name, options))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_package.models:net", "No module named 'no_such_package'"),
        ("torch.nn:Sequentiel", "did you mean 'Sequential'?"),
        ("math:pi", "is a float, not a function"),
        ("not a path:x", "package.module:function"),
        ("torch.nn:", "package.module:function"),
        ("builtins:dict", "returned dict"),
    ],
)
def test_import_path_that_gives_no_model_says_why(path, says):
    error = failing(path, {})
    assert error.subject == "model.name"
    assert says in str(error)


def test_module_that_fails_on_import_is_reported_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_models.py").write_text("raise RuntimeError('no license')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "RuntimeError: no license" in str(failing("broken_models:net", {}))


def test_function_that_fails_is_reported_with_its_options(user_module):
    def net(*, depth=1):
        raise ValueError(f"depth {depth} is odd")

    user_module.net = net
    error = failing("clinic_models:net", {"depth": 3})
    assert error.subject == "model.options"
    assert "depth 3 is odd" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes


@pytest.mark.parametrize("result", [None, [], [nn.Linear(1, 1), "head"]])
def test_result_that_is_no_model_is_refused(user_module, result):
    user_module.net = lambda: result
    assert failing("clinic_models:net", {}).subject == "model.name"


def test_a_name_is_not_registered_twice():
    with pytest.raises(ValueError, match=r"ray_snake\.models\.vgg:vgg11"):
        register("vgg11")(lambda: nn.Linear(1, 1))
    assert isinstance(build_model("vgg11", {"width": 0.1}), nn.Sequential)
