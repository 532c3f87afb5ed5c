"""What `inference.py` and `channels.py` time in JAX: networks, their batches, ways to run them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from benchmarks import inference_networks, timing
from urnet_jax.errors import UserError
from urnet_jax.nets import network
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.cost import macs_per_sample, sides
from urnet_jax.nets.execution import choose
from urnet_jax.nets.mode import Build, Execution, Mode

ALL_ON = {"usage": 1.0, "blocks_share": 1.0, "flops_share": 1.0}

MOST_FLIPPED = 0.01
"""Share of samples, if more than one, in which a network's own gates may differ from dense's: a
step is hard, and a logit within rounding of 0 falls to either side."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What a batch asks of the network.

    Attributes:
      gates: how they come about, and the names of the rows: `agreeing` across the batch,
        `independent` per sample and gate, `trained`.
      usage: share of open gates that is asked for; S where the gates are trained.
      used: the gates that the batch gets with dense.
      own: the network computes them from S, `usage`; else they are given to it.
    """

    gates: tuple[str, ...]
    usage: float
    used: Float[np.ndarray, "B N"]
    own: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network, its weights, a batch of normalised images, and what is asked of it."""

    name: str
    arch: Any
    dtype: str
    graph: Any
    params: Any
    batch_stats: Any
    images: Float[np.ndarray, "B H W C"]
    requests: tuple[Request, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One thing to time.

    Attributes:
      row: what it is: framework, execution, gates, usage, flops_share and so on.
      gates: the names of the gates under which its time is recorded.
      run: runs it once and returns when the logits are there.
    """

    row: dict[str, Any]
    gates: tuple[str, ...]
    run: Callable[[], Any]


def drawn_requests(arch: Any, batch: int, usages: Sequence[float]) -> tuple[Request, ...]:
    """For every usage, gates that agree across the batch and gates drawn independently.

    With usage u, exactly round(u G) of the G gates that agree are open. At 0 and 1 both kinds are
    the same gates, timed once.
    """
    requests, size = [], arch.num_gates
    for usage in usages:
        rng = np.random.default_rng((0, round(1000 * usage), batch))
        row = rng.permutation(size) < round(usage * size)
        agreeing = np.tile(row, (batch, 1)).astype(np.float32)
        if usage in (0, 1):
            requests.append(Request(("agreeing", "independent"), usage, agreeing))
            continue
        independent = (rng.random((batch, size)) < usage).astype(np.float32)
        requests.append(Request(("agreeing",), usage, agreeing))
        requests.append(Request(("independent",), usage, independent))
    return tuple(requests)


def drawn_subject(name: str, batch: int, dtype: str, usages: Sequence[float]) -> Subject:
    """A network of `inference_networks` with random weights, images and gates."""
    arch, rng = inference_networks.found(name), np.random.default_rng(0)
    abstract = network.abstract(arch, Build(dtype))
    graph, params, batch_stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        kind = path[-1].key
        if kind == "kernel":
            values = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[-4:-1]))
        elif kind in ("scale", "var"):
            # Below 1: the sum of a hundred blocks stays small.
            values = rng.uniform(*{"scale": (0.2, 0.8), "var": (0.8, 1.2)}[kind], leaf.shape)
        else:
            values = rng.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    def filled(tree: nnx.State) -> Any:
        return jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(tree))

    shape = (batch, *sides(arch.image_size), arch.image_channels)
    images = rng.normal(size=shape).astype(np.float32)
    requests = drawn_requests(arch, batch, usages)
    return Subject(name, arch, dtype, graph, filled(params), filled(batch_stats), images, requests)


def open_run(workdir: str, data_dir: str) -> tuple[Any, Any, Any, Any]:
    """A run's newest checkpoint and test split: meta, params, batch_stats, split.

    Raises:
      UserError: there is no checkpoint or no data, or the run has no trained gates.
    """
    # Only here: they need the data pipeline's packages, which the rest does without.
    from urnet_jax import config
    from urnet_jax.data.sources import open_split
    from urnet_jax.runs.load import load_network

    meta, params, batch_stats = load_network(workdir)
    if not config.architecture(meta.config).gated or meta.phase == "pretrain":
        raise UserError(
            f"--trained_workdir is {workdir}, whose network has no trained gates: name a run that "
            "is past its phase pretrain."
        )
    meta.config.data.dir = data_dir or meta.config.data.dir
    return meta, params, batch_stats, open_split(meta.config.data, "test")


def trained_subject(
    workdir: str, data_dir: str, batch: int, dtype: str, scales: Sequence[float]
) -> Subject:
    """A run's network on the first images of its test split; errors are those of `open_run`."""
    from urnet_jax import config
    from urnet_jax.data import augment
    from urnet_jax.data.batches import eval_batches

    meta, params, batch_stats, split = open_run(workdir, data_dir)
    meta.config.model.dtype = dtype
    first = next(iter(eval_batches(split, meta.config.data, batch)))["image"]
    normalized = augment.normalize(jnp.asarray(first), *augment.normalization(split.dataset))
    images = np.array(normalized)
    arch, build = config.network(meta.config)
    graph = network.graph(arch, build)
    name = f"resnet{arch.depth} trained"
    subject = Subject(name, arch, dtype, graph, params, batch_stats, images, ())
    dense, requests = jax.jit(forward(subject, "dense")), []
    scales = scales if config.heeds_scale(meta.config, meta.phase) else (1.0,)
    for scale in scales:
        gates = dense(params, batch_stats, images, np.full(batch, scale, np.float32), None)[1]
        requests.append(Request(("trained",), scale, np.array(gates), own=True))
    return dataclasses.replace(subject, requests=tuple(requests))


def forward(subject: Subject, execution: str) -> Callable[..., Any]:
    """f(params, batch_stats, images, scale, gates or None) -> logits, gates."""

    def run(params: Any, batch_stats: Any, images: Any, scale: Any, gates: Any) -> Any:
        net = nnx.merge(subject.graph, nnx.State(params), nnx.State(batch_stats))
        mode = Mode(execution=execution)  # pyright: ignore[reportArgumentType]
        output = net(images, GateInputs(scale, given=gates), mode)
        return output.prediction, output.gates

    return run


def jax_cases(subject: Subject, executions: Sequence[str], check: bool) -> list[Case]:
    """Dense with all blocks on, the reference, then every execution with every request.

    Raises:
      RuntimeError: an execution's logits are not dense's.
    """
    batch, start = len(subject.images), (subject.params, subject.batch_stats)
    images = jnp.asarray(subject.images, subject.dtype)

    def arguments(request: Request) -> tuple:
        scale = jnp.full(batch, request.usage, jnp.float32)
        return *start, images, scale, None if request.own else jnp.asarray(request.used)

    every = np.ones((batch, subject.arch.num_gates), np.float32)
    all_on = arguments(Request(("all on",), 1.0, every, subject.requests[0].own))
    dense, compile_s = timing.compile_timed(forward(subject, "dense"), *all_on)
    row = {"framework": "jax", "execution": "dense", **ALL_ON, "compile_s": compile_s}
    cases = [Case(row, ("all on",), _blocking(dense, all_on))]
    # An execution that is asked for under two names is timed once.
    asked = [Mode(execution=cast(Execution, name)) for name in executions]
    resolved = {choose(subject.arch, mode, batch).execution: None for mode in asked}
    for execution in resolved:
        compiled, compile_s = timing.compile_timed(forward(subject, execution), *all_on)
        for request in subject.requests:
            row = {"framework": "jax", "execution": execution, "compile_s": compile_s}
            row |= shares(subject.arch, request)
            if check:
                what = f"{subject.name}, batch {batch}, {execution}, usage {request.usage:g}"
                expected = jax.device_get(dense(*arguments(request)))
                outputs = jax.device_get(compiled(*arguments(request)))
                row |= compare(expected, outputs, tolerance(subject.dtype), what)
            cases.append(Case(row, request.gates, _blocking(compiled, arguments(request))))
    return cases


def _blocking(compiled: Callable, arguments: tuple) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(compiled(*arguments))


def shares(arch: Any, request: Request) -> dict[str, float]:
    """The usage that is asked for, and the shares of gates and FLOPs that it comes to."""
    macs = np.asarray(macs_per_sample(arch, request.used))
    return {
        "usage": request.usage,
        "blocks_share": float((request.used > 0).mean()),
        "flops_share": float(macs.mean() / arch.cost.full_macs),
    }


def tolerance(dtype: str) -> float:
    """How far, relative to the largest logit, an execution may be from dense."""
    if dtype != "float32":
        return 5e-2
    # Accelerators multiply float32 in fewer bits unless they are told otherwise.
    precision = jax.config.values["jax_default_matmul_precision"]
    exact = jax.default_backend() == "cpu" or precision in ("highest", "float32")
    return 1e-5 if exact else 1e-2


def compare(dense: tuple, other: tuple, most: float, what: str) -> dict[str, float]:
    """Compares an execution's logits and gates with dense's.

    Args:
      dense: logits [B, K] and gates [B, N].
      other: likewise.
      most: relative difference that is allowed.
      what: for the error.

    Returns:
      `relative_difference`, of the samples with the same gates, and `flipped_samples`, the others.

    Raises:
      RuntimeError: they differ by more, or too many gates do.
    """
    same = (dense[1] == other[1]).all(axis=1)
    flipped = int((~same).sum())
    apart = np.abs(np.float64(dense[0]) - other[0])[same].max(initial=0.0)
    difference = float(apart / np.abs(np.float64(dense[0])).max())
    if not difference <= most or flipped > max(1, MOST_FLIPPED * len(same)):
        raise RuntimeError(
            f"{what}: the logits are {difference:.1e} from dense's (relative to the largest; "
            f"allowed: {most:.0e}), and {flipped} of {len(same)} samples have other gates; this "
            "execution is wrong on this device, and its times mean nothing."
        )
    return {"relative_difference": difference, "flipped_samples": flipped}


def compile_seconds(name: str, batch: int, dtype: str, execution: str) -> float:
    """Seconds to trace and compile a network of NETWORKS that computes its gates itself."""
    arch = dataclasses.replace(inference_networks.NETWORKS[name], gated=True)
    abstract = network.abstract(arch, Build(dtype))
    graph, params, batch_stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    size = arch.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, arch.image_channels), dtype)
    scale = jax.ShapeDtypeStruct((batch,), jnp.float32)
    variables = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
    subject = Subject(name, arch, dtype, graph, None, None, np.empty(0), ())
    return timing.compile_timed(forward(subject, execution), *variables, images, scale, None)[1]
