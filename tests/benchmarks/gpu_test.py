"""The benchmark for the day a GPU is at hand, on a CPU and without PyTorch."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks import equality, gpu, gpu_parts, inference, trained, training
from urnet_jax.errors import Stopped, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICE = {
    "platform": "gpu", "kind": "Some GPU", "processor": "Some CPU", "cpu_cores": 4, "threads": 4,
}  # fmt: skip

# A benchmark as `gpu.py` runs them: it says that it ran, and records one group.
MEASURES = """
import json, pathlib, sys
folder = next(a for a in sys.argv if a.startswith("--output=")).removeprefix("--output=")
ran = pathlib.Path(folder).parent / "ran"
ran.write_text(ran.read_text() + "x" if ran.exists() else "x")
rows = [{"group": "a", "kind": "step", "step": "plain", "framework": "jax", "median_ms": 1.5}]
pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
record = {"groups": [{"group": "a", "notes": {"seen": "this"}}], "rows": rows}
pathlib.Path(folder, "some_gpu.json").write_text(json.dumps(record))
"""
FAILS = """
import sys
sys.exit("Traceback ...\\nValueError: no such thing\\n----\\nJAX has removed its internal frames")
"""


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "describe_device", lambda: DEVICE)


def script(folder: pathlib.Path, name: str, code: str) -> tuple[str, ...]:
    path = folder / f"{name}.py"
    path.write_text(code)
    return (str(path),)


def part(name: str, *commands: tuple[str, ...], estimate_s: float = 0.0, **more: Any):
    return gpu_parts.Part(name, estimate_s, more.pop("needs", {}), commands, ("a",), more)


def run(folder: pathlib.Path, *arguments: str) -> dict[str, Any]:
    gpu.run(gpu.parse(["gpu.py", f"--output={folder}", *arguments]))
    return read(folder)


def read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "some_gpu.json").read_text())


def notes(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {group["group"]: group["notes"] for group in record["groups"]}


def test_a_part_that_fails_is_recorded_and_run_again(tmp_path, on_a_gpu, monkeypatch, capfd):
    parts = [
        part("broken", script(tmp_path, "broken", FAILS), script(tmp_path, "one", MEASURES)),
        part("whole", script(tmp_path, "whole", MEASURES)),
        part("poor", script(tmp_path, "poor", MEASURES), needs={"no_such_module": "no-such"}),
    ]
    monkeypatch.setattr(gpu_parts, "parts", lambda _: parts)
    with pytest.raises(UserError, match="failed: broken, poor; .*some_gpu.json says why"):
        run(tmp_path)
    record = read(tmp_path)
    found = notes(record)
    assert found["broken"] == {"failed": "broken.py ended with 1: ValueError: no such thing"}
    assert found["whole"] == {}
    assert found["poor"]["failed"].startswith("not installed: no-such; ")
    # What the first part's other command has shown is there too.
    rows = [(row["group"], row["what"], row["plain, ms"], row["seen"]) for row in record["rows"]]
    assert rows == [("broken", "a", 1.5, "this"), ("whole", "a", 1.5, "this")]
    assert (tmp_path / "ran").read_text() == "xx"
    assert "plain, ms: 1.5" in capfd.readouterr().out

    parts[0] = part("broken", script(tmp_path, "mended", MEASURES))
    parts.pop()
    assert notes(run(tmp_path)) == {"whole": {}, "broken": {}, "poor": found["poor"]}
    assert "whole: measured already" in capfd.readouterr().out
    assert (tmp_path / "ran").read_text() == "xxx"
    run(tmp_path, "--fresh", "--parts=whole")
    assert (tmp_path / "ran").read_text() == "xxxx"


def test_what_time_is_short_for_is_recorded_and_done_later(tmp_path, on_a_gpu, monkeypatch):
    parts = [part("whole", script(tmp_path, "whole", MEASURES), estimate_s=20.0)]
    monkeypatch.setattr(gpu_parts, "parts", lambda _: parts)
    record = run(tmp_path, "--time_limit_s=0")
    assert notes(record)["whole"] == {"skipped": "it may take 20 s, and 0 are left"}
    assert not record["rows"] and not (tmp_path / "ran").exists()
    whole = run(tmp_path)
    assert notes(whole)["whole"] == {} and len(whole["rows"]) == 1
    # What is there stays where there is no time for it.
    assert run(tmp_path, "--time_limit_s=0", "--fresh")["rows"] == whole["rows"]


def test_what_hangs_is_ended_with_the_time(tmp_path, on_a_gpu, monkeypatch):
    hangs = script(tmp_path, "hangs", "import time; time.sleep(600)")
    monkeypatch.setattr(gpu_parts, "parts", lambda _: [part("long", hangs)])
    began = time.monotonic()
    record = run(tmp_path, "--time_limit_s=2")
    assert time.monotonic() - began < 60
    assert notes(record)["long"] == {"unfinished": "not measured yet: a"}


def test_commands_are_the_benchmarks_own(monkeypatch):
    benchmarks: Any = {"equality": equality, "inference": inference, "training": training}
    values = gpu.parse(["gpu.py"])
    for one in gpu_parts.parts(values):
        named = []
        for command in one.commands:
            benchmark = benchmarks[pathlib.Path(command[0]).stem]
            parsed = benchmark.parse([*command, "--output=x", "--time_limit_s=inf", "--fresh"])
            named += [group[0] for group in benchmark._groups(parsed)]
        assert sorted(named) == sorted(one.groups)
        assert shlex.join(sum(one.commands, ())).count("--torch=False") == (
            2 if one.name == "compact_pieces" else 0
        )
    assert [len(one.groups) for one in gpu_parts.parts(values)] == [8, 6, 4, 4, 6, 0]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--parts=inferenz", "--parts names 'inferenz'; expected some of equality, inference, "),
        ("--networks=vgg", "--networks names 'vgg'; expected some of resnet20, "),
        ("--batches=1,0", "--batches is '1,0'; expected whole numbers from 1"),
        ("--base=vgg16", "--base is 'vgg16'; expected resnet and a depth"),
        ("--part=inference", "Unknown command line flag 'part'"),
    ],
)
def test_a_wrong_flag_is_one_sentence(argument, sentence):
    with pytest.raises(UserError) as error:
        gpu.parse(["gpu.py", argument])
    assert sentence in str(error.value)


def test_a_trial_does_not_replace_the_record():
    for benchmark in (equality, gpu):
        name = benchmark.__name__.rpartition(".")[2]
        values = benchmark.parse([f"{name}.py"])
        assert values.output == f"runs/benchmarks/{name}"
        assert f"results/{name}" in (benchmark.__doc__ or "")
    assert gpu.parse(["gpu.py"]).time_limit_s == 540


def test_the_top_names_all_that_a_part_needs():
    words = set((gpu.__doc__ or "").replace(",", " ").replace(";", " ").replace(".", " ").split())
    for one in gpu_parts.parts(gpu.parse(["gpu.py"])):
        assert set(one.needs.values()) <= words


def test_the_cpu_has_to_be_asked_for(monkeypatch):
    answer = json.dumps({**DEVICE, "platform": "cpu"})
    done = subprocess.CompletedProcess([], 0, f"a word of a library\n{answer}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpu.describe_device()["kind"] == "Some GPU"
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(UserError, match="JAX finds no GPU: .*JAX_PLATFORMS=cpu"):
        gpu.describe_device()


def test_numbers_of_a_group():
    forward = {"kind": "forward", "usage": 0.5, "relative_difference": 0.0}
    rows = [
        {"kind": "forward", "framework": framework, "execution": execution, "gates": "all on",
         "usage": 1.0, "median_ms": ms}
        for framework, execution, ms in [
            ("jax", "dense", 1.0), ("torch", "dense", 2.0), ("torch", "compiled", 3.0)
        ]
    ]  # fmt: skip
    for gates, ms in {"agreeing": 4.0, "independent": 5.0}.items():
        for framework, execution in {"jax": "compact", "torch": "dropping"}.items():
            rows.append(forward | {"framework": framework, "execution": execution, "gates": gates}
                        | {"median_ms": ms})  # fmt: skip
    assert gpu_parts.numbers(rows) == {
        "dense, ms": 1.0, "PyTorch dense, ms": 2.0, "PyTorch compiled, ms": 3.0,
        "compact 0.5, ms": 5.0,
    }  # fmt: skip
    apart = [{"execution": "cond", "relative_difference": d} for d in (1e-7, 3e-7, 2e-7)]
    assert gpu_parts.numbers(apart) == {"cond, of dense": 3e-7}


# ---- The training ----


def test_training_goes_on_from_the_state_that_is_carried(tmp_path, on_a_gpu, monkeypatch):
    lines = [
        {"kind": "train", "step": 100, "phase": "pretrain", "top1": 0.5, "images_per_s": 9.0},
        {"kind": "train", "step": 200, "phase": "gates", "top1": 0.75, "images_per_s": 7.0},
        {"kind": "eval", "step": 100, "phase": "pretrain", "scale": 1.0, "top1_percent": 40.0},
    ]
    seen = []

    def train(network, deadline):
        path = network.workdir / "metrics.jsonl"
        network.workdir.mkdir(parents=True, exist_ok=True)
        (network.workdir / trained.SETTINGS).write_text(json.dumps(network.settings))
        seen.append((path.exists(), network.fields["gates.epochs"], network.fields["model.depth"]))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        raise Stopped("Stopped.", 75)

    monkeypatch.setattr(trained, "train", train)
    asked = ["--parts=training", "--data=digits", "--base=resnet8", "--epochs_scale=0.5"]
    there = [*asked, f"--state={tmp_path / 'state'}", f"--workdir={tmp_path / 'one'}"]
    record = run(tmp_path, *there)
    assert notes(record)["training"]["unfinished"].startswith("stopped and saved")
    (row,) = record["rows"]
    assert (row["step"], row["phase"], row["images/s"]) == (200, "gates", 7.0)
    assert row["top-1 in training, %"] == 75 and row["top-1 at S = 1, %"] == 40
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["resnet8_digits.tar"]
    # It goes on elsewhere, and in a workdir that is still there.
    there[-1] = f"--workdir={tmp_path / 'other'}"
    run(tmp_path, *there)
    run(tmp_path, *there)
    assert seen == [(False, 50.0, 8), (True, 50.0, 8), (True, 50.0, 8)]
    # Another run is not gone on with.
    there[there.index("--epochs_scale=0.5")] = "--epochs_scale=0.25"
    with pytest.raises(UserError, match="failed: training"):
        run(tmp_path, *there)
    assert "holds a run with" in notes(read(tmp_path))["training"]["failed"]
    assert len(seen) == 3


def test_training_without_data_is_skipped(tmp_path, on_a_gpu):
    record = run(tmp_path, "--parts=training")
    assert notes(record)["training"]["skipped"].startswith("--data_dir is missing")


# ---- All of it ----


@pytest.mark.slow
def test_one_command_goes_on_where_it_stopped(tmp_path):
    command = [
        sys.executable, str(ROOT / "benchmarks/gpu.py"), "--output=out", "--networks=resnet20",
        "--batches=2", "--usages=0.5", "--repeats=1", "--torch=False", "--data=digits",
        "--base=resnet8", "--epochs_scale=0.001", "--parts=training,compact_pieces",
    ]  # fmt: skip
    # Compiles in a fraction of the time.
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    first = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    # In order of worth, whatever order is asked for.
    timed, run = record["rows"]
    assert (timed["group"], timed["what"]) == ("compact_pieces", "resnet20, batch 2, float32")
    assert {"dense, ms", "compact 0.5, ms", "pieces 0.5, ms"} <= timed.keys()
    assert (run["group"], run["what"], run["phase"]) == ("training", "resnet8_digits", "joint")
    assert run["step"] > 0 and 0 <= run["top-1 at S = 0.2, %"] <= 100
    assert (tmp_path / "out/state/resnet8_digits.tar").stat().st_size > 1e5
    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("measured already") == 2
    assert json.loads(path.read_text())["rows"] == record["rows"]
