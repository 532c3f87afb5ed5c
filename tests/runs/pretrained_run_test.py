"""What a run begins from, and what is exported of one."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import safetensors.numpy

from helpers.pretrained_networks import assert_identical, exported, variables, without_gates
from helpers.variables import init_variables, split_gates
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.runs import pretrained, torch_files
from urnet_jax.runs.export import export_workdir
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "run", ["cifar10_resnet20/earlier_recipe/run", "cifar10_resnet20/plain/run"]
)
def test_runs_from_before_there_was_a_section_init_still_load(run, tmp_path):
    meta, params, batch_stats = load_network(ROOT / "results" / run)
    assert meta.config.init["from"] == ""
    arch = config_lib.architecture(meta.config)
    export_workdir(ROOT / "results" / run, tmp_path / "x.safetensors", "newest")
    tensors = torch_files.read_state_dict(tmp_path / "x.safetensors")
    own = variables(arch)
    taken = pretrained.import_state_dict(tensors, arch, *own)
    if meta.phase == "joint":
        assert_identical(taken, (params, batch_stats))
    else:  # Its gates were not trained yet.
        assert tensors.keys() == without_gates(exported(arch)).keys()
        again = without_gates(pretrained.export_state_dict(*taken, arch))
        held = without_gates(pretrained.export_state_dict(params, batch_stats, arch))
        assert_identical(again, tensors)
        assert_identical(held, tensors)


def test_an_export_speaks_of_gates_where_there_are_some(tiny, tmp_path, capsys):
    fields = {"model.gated": False, "model.gate_prior": 20.0, "scale.of": "flops",
              "pretrain.epochs": 0.1, "joint.epochs": 0.0}  # fmt: skip
    loop.train_and_evaluate(tiny(fields), tmp_path / "run")
    capsys.readouterr()
    export_workdir(tmp_path / "run", tmp_path / "x.safetensors", "newest")
    printed = capsys.readouterr().out
    assert "plain ResNet-8" in printed and "Its gates" not in printed


def test_init_is_refused_before_anything_is_made(tiny, tmp_path):
    def refusal(fields: dict[str, Any]) -> str:
        with pytest.raises(UserError) as error:
            loop.train_and_evaluate(tiny(fields), tmp_path / "new")
        assert not (tmp_path / "new").exists()
        return str(error.value)

    file = tmp_path / "other.safetensors"
    assert refusal({"init.from": str(file)}).startswith(f"{file} cannot be read")
    arch = config_lib.architecture(tiny({"model.depth": 14}))
    torch_files.write_state_dict(exported(arch), file)
    assert "(depth 8, not 14)" in refusal({"init.from": str(file)})
    assert refusal({"init.from": str(file), "pretrain.init_from": "runs/x"}) == (
        f"init.from is {file} and pretrain.init_from runs/x: a run begins from one of them; leave "
        "the other empty."
    )


def export(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "urnet_jax", "export", *arguments],
        cwd=cwd, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_run_begins_from_what_another_exported(finished, start, tiny_flags, tmp_path):
    done = export(f"--workdir={finished}", "--output=whole.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "gated ResNet-8 (cifar, width 16, shortcut A) for 10 classes at 8 px, step 29 (joint): "
        "49 tensors",
        "whole.safetensors",
    ]
    _, params, batch_stats = load_network(finished)
    whole = safetensors.numpy.load_file(tmp_path / "whole.safetensors")
    plain = without_gates(whole)
    assert len(plain) == 37
    safetensors.numpy.save_file(plain, tmp_path / "plain.safetensors")

    flags = [*tiny_flags, "--config.pretrain.epochs=0", "--config.joint.epochs=0"]
    flags += ["--config.gates.learning_rate=0", "--workdir=run"]
    command = "train.py", *flags, "--config.init.from=plain.safetensors"
    with start(*command, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "It begins with the weights of plain.safetensors." in printed
    meta, begun, stats = load_network(tmp_path / "run")
    assert (meta.phase, meta.step, meta.config.init["from"]) == ("gates", 7, "plain.safetensors")
    gates, backbone = split_gates(begun)
    assert_identical(backbone, split_gates(params)[1])
    assert_identical(stats, batch_stats)
    own = init_variables(meta.config)[0]
    assert_identical(gates, split_gates(own)[0])

    # A run that has begun goes on without the file.
    (tmp_path / "plain.safetensors").unlink()
    with start(*command, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "Phase gates is finished." in printed

    config = meta.config.copy_and_resolve_references()
    config.init["from"] = str(tmp_path / "whole.safetensors")
    assert_identical(pretrained.initial_variables(config), (params, batch_stats))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--workdir is missing; name the run's folder, as --workdir=runs/mine."),
        (["--workdir=run"], "--output is missing; name a file, as --output=mine.safetensors."),
        (["--workdir=run", "--output=x.safetensors", "--step=last"],
         "--step is 'last'; expected newest, best or a step's number."),
        (["--workdir=run", "--output=x.npz"],
         "x.npz is no name for a checkpoint; expected one that ends in .safetensors, .pt, .pth or "
         ".th."),
        (["--workdir=run", "--output=x.safetensors", "--step=3"],
         "The workdir run holds no checkpoint; train there first: python train.py --workdir=run."),
    ],
)  # fmt: skip
def test_export_of_what_cannot_be_is_one_sentence(arguments, sentence, tmp_path):
    done = export(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {sentence}\n"
    assert not list(tmp_path.iterdir())


def test_export_says_how_it_is_used(tmp_path):
    done = export("--help", cwd=tmp_path)
    assert done.returncode == 0 and "--output" in done.stdout
