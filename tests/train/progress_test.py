import time

import jax.numpy as jnp
import pytest

from urnet_jax.runs import writers
from urnet_jax.runs.writers import MetricWriter
from urnet_jax.train.metrics import TrainMetrics
from urnet_jax.train.progress import PhaseProgress


def step_metrics(loss: float, correct: list[float]) -> TrainMetrics:
    return TrainMetrics.single_from_model_output(
        loss=jnp.float32(loss),
        task_loss=jnp.array([loss, loss]),
        aux_loss=jnp.array(0.0),
        distill_loss=jnp.array(0.0),
        correct_whole=jnp.array(correct),
        scale_loss=jnp.float32(0.0),
        correct=jnp.array(correct),
        usage=jnp.array([0.5, 1.0]),
        scale=jnp.array([0.25, 0.75]),
        gradient_norm=jnp.float32(3.0),
        state_norm=jnp.float32(5.0),
    )


@pytest.fixture
def begin(tmp_path):
    """Begins the progress of a phase, and closes its file after the test."""
    writer = MetricWriter(tmp_path)

    def make(first: int, num_steps: int, every_steps: int) -> PhaseProgress:
        return PhaseProgress(
            writer, "gates", first=first, num_steps=num_steps, every_steps=every_steps,
            batch_size=2,
        )  # fmt: skip

    yield make
    writer.close()


def test_lines_hold_means_since_the_line_before(begin, tmp_path, capsys):
    with begin(first=0, num_steps=5, every_steps=2) as progress:
        for n, loss in enumerate([1.0, 2.0, 3.0, 5.0, 7.0], start=1):
            progress.add(100 + n, n, step_metrics(loss, [1.0, 0.0 if n < 3 else 1.0]))
            # Written only when a later step is on its way.
            assert len(writers.read(tmp_path)) == (n - 1) // 2
    lines = writers.read(tmp_path)
    assert [line["step"] for line in lines] == [102, 104, 105]
    assert [line["loss"] for line in lines] == [1.5, 4.0, 7.0]
    assert [line["top1"] for line in lines] == [0.5, 1.0, 1.0]
    assert {line["phase"] for line in lines} == {"gates"}
    assert lines[0]["usage"] == 0.75 and lines[0]["scale"] == 0.5
    printed = capsys.readouterr().out
    assert printed.startswith("gates 5/5: loss 7.000, top-1 100.0 %, usage 0.75, ")


def test_a_pause_writes_all_so_that_going_on_from_there_writes_the_same(begin, tmp_path):
    whole = begin(first=0, num_steps=6, every_steps=4)
    for n in range(1, 4):
        whole.add(n, n, step_metrics(n, [0.0, 1.0]))
    whole.pause()
    assert [line["step"] for line in writers.read(tmp_path)] == [3]
    whole.resume()
    resumed = begin(first=3, num_steps=6, every_steps=4)
    for progress in (whole, resumed):
        with progress:
            for n in range(4, 7):
                progress.add(n, n, step_metrics(n, [0.0, 1.0]))
    seen = [(line["step"], line["loss"]) for line in writers.read(tmp_path)]
    assert seen == [(3, 2.0), (4, 4.0), (6, 5.5), (4, 4.0), (6, 5.5)]


def test_a_pause_does_not_count_as_training(begin, tmp_path):
    begun = time.monotonic()
    with begin(first=0, num_steps=2, every_steps=2) as progress:
        progress.add(1, 1, step_metrics(1.0, [0.0, 1.0]))
        progress.pause()
        time.sleep(0.5)  # what is measured, not a wait for something
        progress.resume()
        progress.add(2, 2, step_metrics(1.0, [0.0, 1.0]))
    whole = time.monotonic() - begun
    one_step = 2 / writers.read(tmp_path)[-1]["images_per_s"]
    assert one_step <= whole - 0.5


def test_an_error_ends_a_phase_without_further_lines(begin, tmp_path):
    with pytest.raises(KeyError), begin(first=0, num_steps=2, every_steps=1) as progress:
        progress.add(1, 1, step_metrics(1.0, [0.0, 1.0]))
        raise KeyError
    assert writers.read(tmp_path) == []
