"""A few steps of a phase on the digits, and what they moved."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from helpers.configs import one_pass
from helpers.variables import init_variables
from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.phases import PHASES
from urnet_jax.train import state
from urnet_jax.train.step import make_train_step

STEPS_PER_EPOCH = 22.5
NUM_STEPS = 6


def small_config(depth: int = 8, **overrides: Any) -> Config:
    """Three blocks on the digits, with numbers of its own, for the shipped ones may be tuned."""
    config = one_pass()
    config.model.update({"depth": depth, "width": 8, "gate_bias": 0.0})
    config.gate.update({"sigmoid_probability": 0.5, "draw": "gate"})
    config.scale.update({"min": 0.2, "max": 1.0, "draw": "sample", "loss": "sample", "beta": 4.0})
    config.scale.usage = "gate"
    for phase, factor in zip(PHASES, (1.0, 1.0, 10.0), strict=True):
        config[phase].update({"epochs": 2.0, "learning_rate": 0.1, "warmup_epochs": 0.1})
        config[phase].update({"gate_optimizer": "sgd", "gate_learning_rate_factor": factor})
    for name, value in overrides.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


@functools.cache
def batches() -> list[Any]:
    config = small_config()
    split = open_split(config.data, "train")
    stream = iter(train_batches(split, config.data, seed=0))
    return [next(stream) for _ in range(NUM_STEPS)]


@dataclasses.dataclass
class Run:
    """A phase's step, the state before and after each of its steps, and their metrics."""

    config: Config
    step: Any
    states: list[state.TrainState]
    metrics: list[dict[str, float]]


@functools.cache
def _jitted(make: Callable[..., Any], config_json: str, *arguments: Any) -> Any:
    return make(config_lib.from_json(config_json), *arguments)


def train_step(config: Config, phase: str) -> Any:
    """The step of `make_train_step`, traced and compiled once for all tests of a worker."""
    return _jitted(make_train_step, config_lib.to_json(config), phase, STEPS_PER_EPOCH)


def eval_step(config: Config, phase: str = "joint") -> Any:
    """The step of `make_eval_step`, likewise."""
    return _jitted(make_eval_step, config_lib.to_json(config), phase)


def train(config: Config, phase: str, variables: Any = None, step: Any = None) -> Run:
    step = step or train_step(config, phase)
    params, batch_stats = variables or init_variables(config)
    states = [state.begin_phase(params, batch_stats, config, phase, STEPS_PER_EPOCH, step=100)]
    metrics = []
    for batch in batches():
        # A copy: the step donates what it is given.
        after, found = step(jax.tree.map(jnp.copy, states[-1]), batch)
        states.append(after)
        metrics.append({name: float(value) for name, value in found.compute().items()})
    return Run(config, step, states, metrics)


def named(tree: Any) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(value) for path, value in traverse_util.flatten_dict(tree, sep="/").items()
    }


def changed(run: Run, part: str) -> tuple[set[str], set[str]]:
    """Names of the arrays that differ after the steps, and of those that do not, in any bit."""
    before, after = (named(getattr(run.states[n], part)) for n in (0, -1))
    assert before.keys() == after.keys()
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    return moved, before.keys() - moved
