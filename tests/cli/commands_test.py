import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

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
                          "dir, image_size, batch_size, augment, crop_padding, workers, threads, "
                          "unreadable, labels, ignored_label, eval_size."),
    (["--config.data.name=cifr10"], "data.name is 'cifr10'; expected one of digits, cifar10, "
                                    "cifar100, imagenet2012 (the nearest is cifar10), or the name "
                                    "of a prepared dataset of your own, with data.num_classes, "
                                    "which is 0, set to how many classes it has."),
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
                         "camvid_resnet18, camvid_resnet18_bas, cifar100_resnet110, "
                         "cifar10_resnet110, cifar10_resnet20, cifar10_resnet20_bas, "
                         "cifar10_resnet32_bas, cityscapes_resnet50_bas, digits, finetune, "
                         "imagenet_resnet101, imagenet_resnet18_bas, imagenet_resnet34_bas, "
                         "imagenet_resnet50_bas, table1, table2."),
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
        timeout=300,
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
from urnet_jax.cli import train as cli
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


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_evaluate_needs_only_the_workdir(finished, start, tmp_path):
    shutil.copytree(finished, tmp_path / "moved")
    flags = ["--workdir=moved", "--scales=1,0.2,0.6", "--split=train", "--output=out/tables"]
    with start("evaluate.py", *flags, cwd=tmp_path) as process:
        printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert contents(tmp_path / "moved") == contents(finished)

    out = tmp_path / "out" / "tables"
    names = ["eval.csv", "eval.json", "eval_samples.npz", "top1_vs_flops.png", "block_usage.png"]
    assert {path.name for path in out.iterdir()} == set(names)
    assert [line.rsplit("/")[-1] for line in printed.splitlines()[-5:]] == names
    for name in names[3:]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")

    table = pd.read_csv(out / "eval.csv")
    assert table["scale"].tolist() == [0.2, 0.6, 1.0]
    assert set(table["examples"]) == {1437}
    record = json.loads((out / "eval.json").read_text())
    assert (record["split"], record["phase"], record["step"]) == ("train", "joint", 29)
    pd.testing.assert_frame_equal(pd.DataFrame(record["rows"]), table)
    with np.load(out / "eval_samples.npz") as samples:
        blocks, flops = samples["gates"].sum(axis=2), samples["flops"]
        correct = (samples["predictions"] == samples["labels"]).sum(axis=1)
        index = samples["index"]
    np.testing.assert_array_equal(np.sort(index), np.arange(1437))
    np.testing.assert_array_equal(table["correct"], correct)
    for name, values in [("blocks", blocks), ("flops", flops)]:
        np.testing.assert_allclose(table[f"{name}_mean"], values.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(table[f"{name}_std"], values.std(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(table["blocks_min"], blocks.min(axis=1))
    np.testing.assert_array_equal(table["blocks_max"], blocks.max(axis=1))
    np.testing.assert_allclose(table["usage_mean"], blocks.mean(axis=1) / 3)
    np.testing.assert_allclose(table["flops_share"], flops.mean(axis=1) / table["flops_full"])


LATE = {
    "evaluate an empty folder": (
        ["evaluate.py", "--workdir=empty"],
        "The workdir empty holds no checkpoint; train there first",
    ),
    "go on with another network": (
        ["train.py", "--workdir=run", "--config.model.depth=14"],
        "the config asks for another (depth 14, not 8)",
    ),
    "begin from an empty folder": (
        ["train.py", "--workdir=new", "--config.gates.init_from=empty"],
        "gates.init_from is empty, which holds no checkpoint",
    ),
    "train on data that are not there": (
        ["train.py", "--workdir=new", "--config.data.name=cifar10", "--config.data.dir=empty"],
        "data.dir 'empty' holds no prepared cifar10",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_input_that_only_files_show_to_be_wrong_is_one_sentence(
    case, finished, start, tiny_flags, tmp_path
):
    (script, *arguments), words = LATE[case]
    (tmp_path / "empty").mkdir()
    shutil.copytree(finished, tmp_path / "run")
    before = contents(tmp_path)
    flags = [*tiny_flags, *arguments] if script == "train.py" else arguments
    with start(script, *flags, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=180)  # a search on the network takes longer
    assert (process.returncode, printed) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert words in errors
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()
