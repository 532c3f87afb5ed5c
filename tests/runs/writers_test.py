import json
import math
import os
import pathlib
import struct
import subprocess
import sys
from typing import Any

import pytest

from urnet_jax.runs import writers
from urnet_jax.runs.writers import MetricWriter

ROOT = pathlib.Path(__file__).resolve().parents[2]


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, as strict JSON."""
    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def write(workdir: pathlib.Path, steps: list[int], **settings) -> None:
    writer = MetricWriter(workdir, **settings)
    for step in steps:
        writer.write("train", step, {"phase": "joint", "loss": step / 4})
    writer.close()


def test_each_call_is_a_line(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write("train", 3, {"phase": "joint", "loss": 0.1 + 0.2})
    expected = [{"kind": "train", "step": 3, "phase": "joint", "loss": 0.1 + 0.2}]
    assert lines(tmp_path) == expected  # at once: a kill loses nothing
    writer.write("eval", 4, {"scale": 0.2, "correct": 7})
    writer.close()
    assert lines(tmp_path) == [*expected, {"kind": "eval", "step": 4, "scale": 0.2, "correct": 7}]
    assert writers.read(tmp_path) == lines(tmp_path)


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 8, 10], resume_step=4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10]


def test_a_new_run_begins_a_new_file(tmp_path):
    write(tmp_path, [2, 4])
    write(tmp_path, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


@pytest.mark.parametrize("rest", ['{"kind": "train", "st', '{"kind": "train", "step": 6', "\0\0\0"])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, rest):
    write(tmp_path, [2, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert [line["step"] for line in writers.read(tmp_path)] == [2, 4]
    write(tmp_path, [6], resume_step=4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write("train", 1, {"loss": math.nan, "gradient_norm": math.inf, "top1": 0.5})
    writer.close()
    (line,) = lines(tmp_path)
    assert line == {"kind": "train", "step": 1, "loss": None, "gradient_norm": None, "top1": 0.5}


def test_reading_where_nothing_was_written(tmp_path):
    assert writers.read(tmp_path) == []


def scalars(workdir: pathlib.Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of every scalar in TensorBoard's files, by TFRecord's framing."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += length + 16
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = MetricWriter(tmp_path, tensorboard=True)
    writer.write("train", 2, {"phase": "joint", "loss": 1.5, "gradient_norm": math.nan})
    for scale in (0.25, 1.0):
        writer.write("eval", 4, {"phase": "joint", "scale": scale, "correct": 7})
    writer.close()
    assert scalars(tmp_path) == [
        ("train/loss", 2, 1.5),
        ("eval/scale_at_0.25", 4, 0.25),
        ("eval/correct_at_0.25", 4, 7.0),
        ("eval/scale_at_1", 4, 1.0),
        ("eval/correct_at_1", 4, 7.0),
    ]
    assert len(lines(tmp_path)) == 3


WITHOUT = """
import sys
sys.modules["tensorboardX"] = None  # Python then refuses to import it
from urnet_jax.cli import train as cli
cli.main()
"""


def test_tensorboard_without_its_extra_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "--workdir=run", "--config.log.tensorboard=True"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == (
        "error: log.tensorboard needs the tensorboard extra, which is not installed: pip install "
        "'urnet-jax[tensorboard]', or set --config.log.tensorboard=False.\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)
    assert list(tmp_path.iterdir()) == []
