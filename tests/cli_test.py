import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

TRAIN = [
    (["--config.model.dept=8"], "'model.dept' is not a config field; the nearest known one is "
                                "model.depth."),
    (["--config.model.depth=abc"], "model.depth is 'abc'; expected a whole number of at least 1."),
    (["--config.data.batch_size", "1.5"], "data.batch_size is '1.5'; expected a whole number of at "
                                          "least 1."),
    (["--config.model.gated=maybe"], "model.gated is 'maybe'; expected True or False."),
    (["--config.eval.scales=0.2 0.4"], "eval.scales is '0.2 0.4'; expected a tuple of one or more "
                                       "numbers from 0 to 1."),
    (["--config.data=3"], "data is a section of the config; set its fields: name, num_classes, "
                          "dir, image_size, batch_size, augment, crop_padding, workers, threads."),
    (["--config.data.name=cifr10"], "data.name is 'cifr10'; expected one of digits, cifar10, "
                                    "cifar100, imagenet2012 (the nearest is cifar10), or the name "
                                    "of a prepared dataset of your own, with data.num_classes set "
                                    "to how many classes it has."),
    (["--config.data.augment=random_resized_crop"], "data.augment is 'random_resized_crop'; with "
                                                    "data.name 'digits' expected one of none, "
                                                    "crop, crop_flip."),
    (["--config.scale.min=-0.1"], "scale.min is -0.1; expected a number from 0 to 1."),
    (["--config.eval.scales=0.2,1.2"], "eval.scales is (0.2, 1.2); expected a tuple of one or more "
                                       "numbers from 0 to 1."),
    (["--config.gate.sigmoid_probability=1.5"], "gate.sigmoid_probability is 1.5; expected a "
                                                "number from 0 to 1."),
    (["--config.model.gate_reduction=0"], "model.gate_reduction is 0; expected a whole number of "
                                          "at least 1."),
    (["--config.model.depth=21"], "model.depth is 21; a CIFAR ResNet has depth 6n+2 (8, 14, 20, "
                                  "...): the nearest is 20."),
    (["--config.data.batch_size=0"], "data.batch_size is 0; expected a whole number of at least "
                                     "1."),
    (["--config=digit"], "config 'digit' is neither a file nor one of the shipped configs "
                         "cifar100_resnet110, cifar10_resnet110, cifar10_resnet20, digits, "
                         "imagenet_resnet101."),
    (["--config.model.gated", "False"], "unexpected argument 'False'; write every option as "
                                        "--name=value."),
    (["--confg=digits"], "Unknown command line flag 'confg'. Did you mean: config ?"),
    (["--workdir="], "--workdir is missing; name the run's folder, as --workdir=runs/mine."),
    (["--workdir=taken"], "--workdir is 'taken', a file; name a folder."),
]  # fmt: skip
EVALUATE = [
    (["--scales=0.2,1.2"], "--scales is '0.2,1.2'; expected numbers from 0 to 1 separated by "
                           "commas, as 0.2,0.6."),
    (["--scales=a"], "--scales is 'a'; expected numbers from 0 to 1 separated by commas, as "
                     "0.2,0.6."),
    (["--split=valid"], "--split is 'valid'; value should be one of <test|train>."),
    (["--batch_size=-1"], "--batch_size is '-1'; expected a non-negative integer."),
    (["--workdir="], "--workdir is missing; name the run's folder, as --workdir=runs/mine."),
]  # fmt: skip


def run(script: str, *arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [("train.py", *case) for case in TRAIN] + [("evaluate.py", *case) for case in EVALUATE],
)
def test_bad_input_is_one_sentence(
    script: str, arguments: list[str], sentence: str, tmp_path: pathlib.Path
):
    (tmp_path / "taken").touch()
    done = run(script, "--workdir=run", *arguments, cwd=tmp_path)
    assert done.stderr == f"error: {sentence}\n"
    assert done.stdout == ""
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_workdir_is_required(script: str, tmp_path: pathlib.Path):
    done = run(script, cwd=tmp_path)
    assert done.stderr.startswith("error: --workdir is missing")
    assert done.returncode == 2


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help(script: str, tmp_path: pathlib.Path):
    done = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"python {script}" in done.stdout and "--workdir" in done.stdout


PARSE = """
import sys
from urnet_jax import cli
config, workdir = cli._parse_train(["train.py", *sys.argv[1:]])
print(workdir, config.seed, config.data.name, config.data.dir, config.model.gated)
print(config.model.gate_bias, config.joint.epochs, config.gates.learning_rate, config.eval.scales)
print("jax" in sys.modules, cli.FLAGS["verbosity"].value)
"""


def test_overrides_reach_the_config(tmp_path: pathlib.Path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", PARSE),
            *("--config.seed=1", "--config", "cifar10_resnet20", "--config.seed=2"),
            *("--config.data.dir=a=b", "--noconfig.model.gated", "--config.model.gate_bias", "-1"),
            *("--config.joint.epochs=3", "--config.gates.learning_rate", "0.1"),
            *("--config.eval.scales=1,0.2", "--workdir", "runs/mine"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "runs/mine 2 cifar10 a=b False",
        "-1.0 3.0 0.1 (1, 0.2)",
        "False -1",
    ], done.stderr


def test_commands_for_own_data_are_as_documented(tmp_path: pathlib.Path):
    document = (ROOT / "docs" / "own_data.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^python train\.py (.*)$", document, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", PARSE, *shlex.split(command)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith("runs/flowers 0 flowers DATA_DIR True\n"), done.stderr
