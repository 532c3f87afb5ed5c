"""What `training.py` times: steps in JAX and in PyTorch, and the input pipeline."""

import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from benchmarks import timing
from benchmarks.results import Row
from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.nets import network
from urnet_jax.train import state as state_lib
from urnet_jax.train.step import make_train_step

PHASE = "joint"
TRAIN_IMAGES = 50_000
"""Of CIFAR-10; the schedules are drawn from it."""
CIFAR_PIXELS = 32
INPUT_BATCHES = 200
"""Batches of one timed round of the input pipeline."""
HUGE_PAGES = "glibc.malloc.hugetlb=1"

Case: TypeAlias = tuple[Row, Callable[[], None]]
"""What a row says beforehand, and a call that takes one step and returns when it is done."""


def make_config(
    network: str, dtype: str, batch_size: int, *, gated: bool, image_size: int = CIFAR_PIXELS
) -> Config:
    """The config whose step is timed: a CIFAR network's for CIFAR's images, else an ImageNet one's.

    Raises:
      UserError: there is no such network or dtype.
    """
    depth = re.fullmatch(r"resnet(\d+)", network)
    if depth is None:
        raise UserError(
            f"--networks names {network!r}; expected resnet and a depth, as resnet20, separated by "
            "commas."
        )
    # The paper's steps, of one pass: the same work as a plain network's, but for the gates.
    paper = config_lib.load("cifar10_resnet110")
    config = paper if image_size == CIFAR_PIXELS else config_lib.load("imagenet_resnet101")
    config.update_from_flattened_dict(
        {
            "data.image_size": image_size,
            "model.depth": int(depth[1]),
            "model.dtype": dtype,
            "model.gated": gated,
            "data.batch_size": batch_size,
            "gate.sigmoid_probability": paper.gate.sigmoid_probability,
        }
    )
    config_lib.validate(config)
    return config


def huge_pages() -> bool | None:
    """Whether malloc is asked for large pages; None where the question does not arise."""
    if sys.platform != "linux" or jax.default_backend() != "cpu":
        return None
    return HUGE_PAGES in os.environ.get("GLIBC_TUNABLES", "").split(":")


def jax_case(name: str, config: Config) -> Case:
    """The step of `config` on a batch on the device; its compile time is measured here."""
    steps_per_epoch = TRAIN_IMAGES / config.data.batch_size
    variables = network.init_variables(*config_lib.network(config), config.seed)
    state = state_lib.begin_phase(*variables, config, PHASE, steps_per_epoch)
    images, labels = random_batch(config)
    index = np.arange(len(labels), dtype=np.int32)
    batch = {"image": images, "label": labels, "index": index, "epoch": np.zeros_like(index)}
    batch = jax.device_put(batch)
    start = time.perf_counter()
    train_step: Any = make_train_step(config, PHASE, steps_per_epoch)
    compiled = train_step.lower(state, batch).compile()
    compile_s = time.perf_counter() - start

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    row = {"framework": "jax", "step": name, "parameters": parameters, "compile_s": compile_s}
    if config.model.gated:
        row["sigmoid_probability"] = config.gate.sigmoid_probability
    return row, step


def random_batch(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [B, h, w, c] and labels int32 [B]."""
    rng, data = np.random.default_rng(0), config.data
    shape = (data.batch_size, data.image_size, data.image_size, 3)
    images = rng.integers(0, 256, shape, np.uint8)
    return images, rng.integers(0, 10, data.batch_size, np.int32)


def torch_cases(config: Config, *, compiled: bool) -> tuple[list[Case], dict[str, str]]:
    """The plain network's step in PyTorch, and through torch.compile; and why that is left out."""
    from benchmarks import torch_networks
    from benchmarks.torch_networks import torch

    device = torch_networks.device_name(jax.devices()[0].platform)
    if device == "cpu":
        torch.set_num_threads(timing.threads())
    torch.backends.cudnn.benchmark = True
    images, labels = random_batch(config)
    images = torch_networks.to_torch(images.astype(np.float32) / 128 - 1, device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    section, dtype = config[PHASE], getattr(torch, config.model.dtype)
    autocast = dtype != torch.float32

    def case(name: str, wrap: Callable[[Any], Any]) -> Case:
        network = torch_networks.build(config_lib.architecture(config), device).train()
        sgd = torch.optim.SGD(
            network.parameters(), section.learning_rate, section.momentum,
            weight_decay=section.weight_decay, nesterov=True,
        )  # fmt: skip
        forward = wrap(network)

        def step() -> None:
            # As in JAX, the parameters stay float32 whatever the computation's dtype.
            with torch.autocast(device, dtype, enabled=autocast):
                logits = forward(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            if device == "cuda":
                torch.cuda.synchronize()

        parameters = sum(p.numel() for p in network.parameters())
        return {"framework": "torch", "step": name, "parameters": parameters}, step

    cases, notes = [case("plain", lambda network: network)], {}
    if compiled:
        torch.compiler.reset()
        row, step = case("plain, compiled", lambda n: torch.compile(n, dynamic=False))
        try:
            row["compile_s"] = timing.seconds(step)
            cases.append((row, step))
        except Exception as error:  # Whatever is missing: a compiler, Triton, support of Python.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes["torch.compile is left out"] = reason[:300]
    return cases, notes


def input_row(data_dir: str, batch_size: int, repeats: int) -> Row:
    """Images/s of the training batches, without a step: CIFAR-10 of `data_dir`, or digits."""
    # Only here: they need packages that the steps do without.
    from urnet_jax.data.batches import train_batches
    from urnet_jax.data.sources import open_split

    config = config_lib.load("cifar10_resnet20" if data_dir else "digits")
    config.data.dir, config.data.batch_size = data_dir, batch_size
    start = time.perf_counter()
    split = open_split(config.data, "train")
    open_s = time.perf_counter() - start
    batches = iter(train_batches(split, config.data, seed=config.seed))
    next(batches)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(INPUT_BATCHES):
            next(batches)
        rates.append(INPUT_BATCHES * batch_size / (time.perf_counter() - start))
    batches.close()
    p25, median, p75 = map(float, np.percentile(rates, (25, 50, 75)))
    row = {"kind": "input", "dataset": split.dataset, "image_shape": list(split.image_shape)}
    row |= {"in_memory": split.source is None, "batch_size": batch_size}
    row |= {"images_per_s": median, "p25_images_per_s": p25, "p75_images_per_s": p75}
    row |= {"open_s": open_s, "repeats": repeats, "huge_pages": huge_pages()}
    return row
