import json
import pathlib

import pytest
from ml_collections import ConfigDict

from helpers.configs import digits
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.fields import FIELDS, LATER

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
FIXED = {"scale.schedule": "fixed", "scale.noise": 0.1}
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")
GIVEN = {"finetune": {"data.num_classes": 5, "init.from": "resnet18.pth"}}
"""What the user has to give."""


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.chdir(tmp_path)
    config = config_lib.load(f"configs/{name}.py")
    config.update_from_flattened_dict(GIVEN.get(name, {}))
    config_lib.validate(config)
    assert set(config_lib.flatten(config)) == set(config_lib.fields_of(config))
    assert config.is_locked
    again = [config_lib.load(name), config_lib.load(str(CONFIGS / f"{name}.py"))]
    for other in again:
        other.update_from_flattened_dict(GIVEN.get(name, {}))
    assert config == again[0] == again[1]
    again = config_lib.from_json(config_lib.to_json(config))
    assert again == config and again.is_locked
    assert isinstance(again.eval.scales, tuple) and isinstance(again.eval.scales[-1], float)
    assert isinstance(again.pretrain.epochs, float)


def test_shipped_configs_are_the_promised_ones():
    assert NAMES == [
        "camvid_resnet18",
        "camvid_resnet18_bas",
        "cifar100_resnet110",
        "cifar10_resnet110",
        "cifar10_resnet20",
        "cifar10_resnet20_bas",
        "cifar10_resnet32_bas",
        "cityscapes_resnet50_bas",
        "digits",
        "finetune",
        "imagenet_resnet101",
        "imagenet_resnet18_bas",
        "imagenet_resnet34_bas",
        "imagenet_resnet50_bas",
        "table1",
        "table2",
    ]


@pytest.mark.parametrize(
    ("table", "row", "fields"),
    [
        ("table1", "random_drop_test", {"model.gated": False, "gate.random_drop": "test"}),
        ("table1", "random_drop", {"model.gated": False, "gate.random_drop": "always"}),
        ("table1", "external", {"model.gate_network": "external"}),
        ("table1", "sigmoid_only", {"gate.sigmoid_probability": 1.0}),
        ("table1", "step_only", {"gate.sigmoid_probability": 0.0}),
        ("table1", "block_attention", {"gate.random_drop": "always", "model.gated": True}),
        ("table1", "urnet", {"gate.sigmoid_probability": 0.1, "scale.beta": 2.0}),
        ("table1", "paper", {"gate.sigmoid_probability": 0.1, "scale.beta": 2.0}),
        ("table1", "ours", {"scale.usage": "step"}),
        ("table2", "resnet75", {"model.gated": False, "model.depth": 75}),
        ("table2", "urnet_ranged", {"model.gated": True, "scale.schedule": "ranged"}),
        ("table2", "urnet_fixed_0.6", FIXED | {"scale.fixed": 0.6, "eval.scales": (0.6,)}),
        ("table2", "urnet_fixed_0.2", FIXED | {"scale.fixed": 0.2, "eval.scales": (0.2,)}),
    ],
)
def test_a_row_of_the_papers_tables(table: str, row: str, fields: dict[str, object]):
    config = config_lib.load(f"configs/{table}.py:{row}")
    config_lib.validate(config)
    values = config_lib.flatten(config)
    assert fields.items() <= values.items()
    epochs = config.gates.epochs * config.model.gated + config.joint.epochs
    assert epochs == {"table1": 500, "table2": 20}[table]


def test_an_unknown_row_lists_the_known_ones():
    with pytest.raises(
        UserError, match="table1 has no row 'urn'; its rows are random_drop_test, .*urnet"
    ):
        config_lib.load("table1:urn")
    with pytest.raises(UserError, match="config digits has no rows: name it without ':urnet'"):
        config_lib.load("digits:urnet")


def test_a_config_from_before_a_field_existed_means_what_it_meant():
    text = config_lib.to_json(config_lib.load("digits"))
    tree = json.loads(text)
    later = {name: value for name, value in LATER.items() if name in FIELDS}
    for name in later:
        section, leaf = name.split(".")
        del tree[section][leaf]
    del tree["init"]
    older = config_lib.from_json(json.dumps(tree))
    config_lib.validate(older)
    assert later.items() <= config_lib.flatten(older).items()


def test_json_keeps_values_that_print_badly():
    config = digits(joint__weight_decay=0.1 + 0.2, eval__scales=(1 / 3,), data__dir='a "b"\\ü\n')
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.joint.weight_decay == 0.1 + 0.2
    assert again.eval.scales == (1 / 3,)
    assert again.data.dir == 'a "b"\\ü\n'
    assert again == config


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_json_that_is_no_config(text: str):
    with pytest.raises(UserError, match="stored config is not"):
        config_lib.from_json(text)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model__dept": 8}, "'model.dept' is not a config field; the nearest known one is "
                             "model.depth."),
        ({"see": 8}, "'see' is not a config field; the nearest known one is seed."),
        ({"data": 3}, "data is a section of the config; set its fields: name, num_classes, dir, "
                      "image_size, batch_size, augment, crop_padding, workers, threads, "
                      "unreadable, labels, ignored_label, eval_size."),
        ({"data": ConfigDict()}, "data is a section of the config; set its fields: name, "
                      "num_classes, dir, image_size, batch_size, augment, crop_padding, workers, "
                      "threads, unreadable, labels, ignored_label, eval_size."),
        ({"model__depth": "20"}, "model.depth is '20'; expected a whole number of at least 1."),
        ({"model__depth": 20.0}, "model.depth is 20.0; expected a whole number of at least 1."),
        ({"model__depth": True}, "model.depth is True; expected a whole number of at least 1."),
        ({"model__gated": 1}, "model.gated is 1; expected True or False."),
        ({"scale__beta": True}, "scale.beta is True; expected a number of at least 0."),
        ({"model__gate_bias": float("nan")}, "model.gate_bias is nan; expected a number."),
        ({"data__dir": None}, "data.dir is None; expected text."),
        ({"data__augment": "flip"}, "data.augment is 'flip'; expected one of 'none', 'crop', "
                                    "'crop_flip', 'random_resized_crop', 'scale_crop_flip'."),
        ({"data__augment": "scale_crop_flip"}, "data.augment is 'scale_crop_flip', which is for "
                                               "label maps, and data.labels is 'class': set that "
                                               "to 'map', or data.augment to one of none, crop, "
                                               "crop_flip."),
        ({"data__eval_size": (8.0, 8)}, "data.eval_size is (8.0, 8); expected a tuple of whole "
                                        "numbers of at least 1."),
        ({"data__ignored_label": 256}, "data.ignored_label is 256; expected a whole number from -1 "
                                       "to 255."),
        ({"data__ignored_label": 255}, "data.ignored_label is 255, which is for label maps, and "
                                       "data.labels is 'class': set it to -1, or data.labels to "
                                       "'map'."),
        ({"data__eval_size": (8, 8)}, "data.eval_size is (8, 8), which is for label maps, and "
                                      "data.labels is 'class': set it to (), or data.labels to "
                                      "'map'."),
        ({"data__labels": "map"}, "data.labels is 'map', and the images of digits have one class "
                                  "each: set it to 'class', or data.name to a prepared dataset of "
                                  "label maps."),
        ({"data__augment": "random_resized_crop"}, "data.augment is 'random_resized_crop'; with "
                                    "data.name 'digits' expected one of none, crop, crop_flip."),
        ({"data__name": "imagenet2012"}, "data.augment is 'crop'; with data.name 'imagenet2012' "
                                         "expected one of none, random_resized_crop."),
        ({"data__name": "cifr100"}, "data.name is 'cifr100'; expected one of digits, cifar10, "
                                    "cifar100, imagenet2012 (the nearest is cifar100), or the name "
                                    "of a prepared dataset of your own, with data.num_classes, "
                                    "which is 0, set to how many classes it has."),
        ({"data__name": "", "data__num_classes": 5}, "data.name is ''; expected one of digits, "
                                    "cifar10, cifar100, imagenet2012 (the nearest is "
                                    "imagenet2012), or the name of a prepared dataset of your own, "
                                    "with data.num_classes, which is 5, set to how many classes it "
                                    "has."),
        ({"data__num_classes": 7}, "data.num_classes is 7; digits has 10 classes: set it to 10, or "
                                   "to 0 for the dataset's own number."),
        ({"data__num_classes": -1}, "data.num_classes is -1; expected a whole number of at least "
                                    "0."),
        ({"data__batch_size": 0}, "data.batch_size is 0; expected a whole number of at least 1."),
        ({"gate__sigmoid_probability": 1.1}, "gate.sigmoid_probability is 1.1; expected a number "
                                             "from 0 to 1."),
        ({"scale__min": -0.1}, "scale.min is -0.1; expected a number from 0 to 1."),
        ({"scale__min": 0.9, "scale__max": 0.5}, "scale.min is 0.9, more than scale.max, 0.5; "
                                                 "lower scale.min."),
        ({"scale__max": 2.5}, "scale.max is 2.5; expected a number from 0 to 2."),
        ({"joint__epochs": -1.0}, "joint.epochs is -1.0; expected a number from 0 to 100000.0."),
        ({"joint__momentum": 1.0}, "joint.momentum is 1.0; expected a number from 0 to below 1."),
        ({"log__every_steps": 0}, "log.every_steps is 0; expected a whole number of at least 1."),
        ({"eval__scales": ()}, "eval.scales is (); expected a tuple of one or more numbers from 0 "
                               "to 1."),
        ({"eval__scales": (0.2, 1.5)}, "eval.scales is (0.2, 1.5); expected a tuple of one or more "
                                       "numbers from 0 to 1."),
        ({"eval__scales": (True,)}, "eval.scales is (True,); expected a tuple of one or more "
                                    "numbers from 0 to 1."),
        ({"model__depth": 21}, "model.depth is 21; a CIFAR ResNet has depth 6n+2 (8, 14, 20, ...): "
                               "the nearest is 20."),
        ({"model__gate_reduction": 0}, "model.gate_reduction is 0; expected a whole number of at "
                                       "least 1."),
        ({"model__gate_reduction": 17}, "model.gate_reduction is 17; expected 1 to 16, the "
                                        "channels that the first gate sees."),
    ],
)  # fmt: skip
def test_validate_says_what_is_wrong(overrides: dict[str, object], sentence: str):
    with pytest.raises(UserError) as caught:
        config_lib.validate(digits(**overrides))
    assert str(caught.value) == sentence


def test_validate_names_a_missing_field():
    tree = config_lib.load("digits").to_dict()
    del tree["scale"]["beta"]
    with pytest.raises(UserError, match="scale.beta is missing .* a number of at least 0."):
        config_lib.validate(ConfigDict(tree))


def test_whole_numbers_stand_for_floats():
    config_lib.validate(digits(joint__epochs=3, eval__scales=(0, 1), scale__min=0))


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_refuses_what_it_cannot_be(name: str):
    with pytest.raises(UserError, match=name):
        config_lib.validate(digits(**{name.replace(".", "__"): object()}))


def test_architecture_follows_config_and_dataset():
    config = digits(model__depth=8, data__name="cifar100", data__image_size=32)
    arch = config_lib.architecture(config)
    assert (arch.depth, arch.num_classes, arch.image_channels, arch.image_size) == (8, 100, 3, 32)
    own = config_lib.architecture(config, num_classes=7, image_channels=1)
    assert (own.num_classes, own.image_channels) == (7, 1)


def test_own_data_has_the_classes_it_is_said_to_have():
    config = digits(data__name="flowers", data__num_classes=5, data__augment="random_resized_crop")
    config_lib.validate(config)
    arch = config_lib.architecture(config)
    assert (arch.num_classes, arch.image_channels) == (5, 3)
    config_lib.validate(digits(data__num_classes=10))


def write(path: pathlib.Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_own_config_builds_on_a_shipped_one(tmp_path: pathlib.Path):
    own = write(
        tmp_path / "own.py",
        "from urnet_jax import config\n"
        "def get_config():\n"
        "    mine = config.load('digits')\n"
        "    mine.model.depth = 8\n"
        "    return mine\n",
    )
    loaded = config_lib.load(own)
    config_lib.validate(loaded)
    assert loaded.model.depth == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.py"]


def test_whole_numbers_in_a_file_become_floats(tmp_path: pathlib.Path):
    text = (CONFIGS / "digits.py").read_text().replace("epochs=30.0", "epochs=30")
    loaded = config_lib.load(write(tmp_path / "own.py", text))
    assert isinstance(loaded.pretrain.epochs, float)
    assert loaded == config_lib.load("digits")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1", "has no get_config.* that returns a ConfigDict"),
        ("def get_config(): return {}", "has no get_config.* that returns a ConfigDict"),
        ("a b", "is not valid Python: invalid syntax .*line 1"),
    ],
)
def test_file_that_is_no_config(text: str, sentence: str, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=sentence):
        config_lib.load(write(tmp_path / "own.py", text))


@pytest.mark.parametrize("name", ["digit", "", "configs", "other/digits.py", "/digits", "__init__"])
def test_unknown_config_lists_the_shipped_ones(name: str):
    with pytest.raises(UserError, match=f"'{name}' is neither a file nor .*{', '.join(NAMES)}"):
        config_lib.load(name)
