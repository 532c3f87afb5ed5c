"""A network as a pure function of its variables, whatever kind it is."""

import functools
import importlib
from typing import Any

import jax
from flax import nnx, traverse_util
from jaxtyping import Array, Float

from urnet_jax import streams
from urnet_jax.errors import MissingCode
from urnet_jax.nets.contract import Description, GateInputs, GateParam, GateStat, Output
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.tasks import Task
from urnet_jax.streams import Stream

Tree = dict[str, Any]
Path = tuple[str, ...]


def found(name: str) -> Any:
    """What is called "package.module:Name"; a UserError if there is no such thing."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MissingCode(
            f"A network's description names {name!r}, which cannot be found ({error}): name its "
            "class as 'package.module:Class'."
        ) from error


def task(arch: Description) -> Task:
    """What the network is for."""
    return found(arch.task)()


def make(arch: Description, build: Build, key: Array) -> Any:
    """The network with initial weights from `key`."""
    return found(arch.network)(arch, build, rngs=nnx.Rngs(key))


@functools.cache
def abstract(arch: Description, build: Build) -> Any:
    """The network in shapes and dtypes; no weight is computed."""
    return nnx.eval_shape(lambda: make(arch, build, jax.random.key(0)))


def graph(arch: Description, build: Build) -> nnx.GraphDef:
    """The network's structure."""
    return nnx.split(abstract(arch, build))[0]


def abstract_variables(arch: Description, build: Build) -> tuple[Tree, Tree]:
    """Parameters and batch_stats in shapes and dtypes."""
    return _split(abstract(arch, build))


def gate_paths(arch: Description, build: Build) -> frozenset[Path]:
    """The paths, in params or batch_stats, of what gates are made of; no path is in both."""
    of_gates = nnx.state(abstract(arch, build), nnx.Any(GateParam, GateStat))
    return frozenset(traverse_util.flatten_dict(_named(of_gates)))


def init_variables(arch: Description, build: Build, seed: int) -> tuple[Tree, Tree]:
    """Initial parameters and batch_stats, from the seed alone."""
    # Each weight is drawn by its own unrolled generator: optimising that code takes far longer
    # than running it once.
    on_cpu = jax.default_backend() == "cpu"
    compiler_options: Any = {"xla_backend_optimization_level": "0"} if on_cpu else None
    key = streams.key(seed, Stream.WEIGHTS)
    compiled = jax.jit(lambda: _split(make(arch, build, key)), compiler_options=compiler_options)
    return compiled()


def apply(
    graph: nnx.GraphDef, params: Tree, batch_stats: Tree, images: Float[Array, "B H W C"],
    inputs: GateInputs, mode: Mode = Mode(),
) -> tuple[Output, Tree]:  # fmt: skip
    """Runs the network purely: its output, and the batch_stats after the call."""
    network = nnx.merge(graph, _state(params), _state(batch_stats))
    output = network(images, inputs, mode)
    return output, _named(nnx.state(network, nnx.BatchStat))


def split_gates(tree: Tree, paths: frozenset[Path]) -> tuple[Tree, Tree]:
    """What of a tree is of gates, whose paths `gate_paths` gives, and the rest."""
    flat = traverse_util.flatten_dict(tree)
    gates = {path: leaf for path, leaf in flat.items() if path in paths}
    rest = {path: leaf for path, leaf in flat.items() if path not in paths}
    return traverse_util.unflatten_dict(gates), traverse_util.unflatten_dict(rest)


def replaced(own: Tree, found: Tree) -> Tree:
    """`own` with the leaves that `found` has too."""
    leaves, others = map(traverse_util.flatten_dict, (own, found))
    return traverse_util.unflatten_dict({path: others.get(path, leaves[path]) for path in leaves})


def _split(network: Any) -> tuple[Tree, Tree]:
    _, params, batch_stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return _named(params), _named(batch_stats)


def _named(state: Any) -> Tree:
    """As nested dicts whose keys are text, as checkpoints have it: those of lists are numbers."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return traverse_util.unflatten_dict({tuple(map(str, path)): x for path, x in flat.items()})


def _state(tree: Tree) -> Any:
    """Undoes `_named`; no attribute is called by a number."""
    flat = traverse_util.flatten_dict(tree)
    native = {
        tuple(int(key) if key.isdecimal() else key for key in path): leaf
        for path, leaf in flat.items()
    }
    return nnx.State(traverse_util.unflatten_dict(native))
