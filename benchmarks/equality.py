"""Do all executions of a gated network equal dense on this device?

    python benchmarks/equality.py [--networks=resnet20,resnet110] [--batch_sizes=4,1] ...

--networks      of resnet20, resnet110 (32 px), resnet50 and resnet101 (224 px), gates and all;
                default: the first three
--batch_sizes   default: 4,1; more samples take longer to compile; of 1 only cond is compared,
                which `auto` takes
--dtype         float32 and bfloat16 (default: both), separated by a comma
--output        the folder for the results; default: runs/benchmarks/equality; what is to be kept
                in the repository: results/equality
--fresh         compares again what is recorded
--time_limit_s  after these seconds no further group is started

Weights are random, and an offset that is drawn for every sample and block decides the gates, which
the network computes itself as hard steps. A row is an execution with a share of open gates, and
says how far it is from dense. Where that is too far, the command ends with an error once all is
recorded. float32 is exact, not TF32.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, cast

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from flax import nnx

from benchmarks import inference_cases, inference_networks, results, timing
from benchmarks.inference_cases import Subject
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.mode import Execution, Mode

EXECUTIONS = ("cond", "compact", "pieces")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of gates that are open."""

ALLOWED = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far an execution may be from dense, relative to the largest number. Accelerators pick another
algorithm for another batch size, so float32 has more than its own rounding."""

DECIDED = 8.0
"""The least offset, open or closed: it outweighs what the random gates score, so that no gate is
within rounding of its step and a gate that differs is an error."""

NOT_FINITE = 1e9
"""The difference of what is not finite: JSON knows no infinity."""

Outputs: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Logits [B, K], gates [B, G] and what the gates score without their offset [B, G]."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on where it stopped."):
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_list, help="", flag_values=values)
    define("networks", ["resnet20", "resnet110", "resnet50"])
    define("batch_sizes", ["4", "1"])
    define("dtype", list(ALLOWED))
    results.define_flags(values, "equality")
    timing.parse_flags(values, argv, __doc__ or "")
    for name, known in {"networks": inference_networks.NETWORKS, "dtype": ALLOWED}.items():
        if unknown := [given for given in getattr(values, name) if given not in known]:
            raise UserError(f"--{name} names {unknown[0]!r}; expected some of {', '.join(known)}.")
    if not all(size.isdecimal() and int(size) for size in values.batch_sizes):
        raise UserError(
            f"--batch_sizes is {','.join(values.batch_sizes)!r}; expected whole numbers from 1, "
            "separated by commas."
        )
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Compares what has not been compared; returns the file.

    Raises:
      UserError: an execution does not equal dense on this device.
    """
    path, record = results.measure(_groups(values), values, timed=False)
    print(path)
    if wrong := [row for row in record["rows"] if not row["equal"]]:
        worst = max(wrong, key=lambda row: row["relative_difference"])
        raise UserError(
            f"{len(wrong)} of {len(record['rows'])} comparisons with dense fail; {worst['group']}, "
            f"{worst['execution']} is {worst['relative_difference']:.1e} from it, with "
            f"{worst['flipped_gates']} other gates: leave that execution alone on this device."
        )
    return path


def _groups(values: flags.FlagValues) -> Iterator[results.Group]:
    sizes = map(int, values.batch_sizes)
    for name, size, dtype in itertools.product(values.networks, sizes, values.dtype):
        compare = functools.partial(rows, name, size, dtype)
        yield f"{name}, batch {size}, {dtype}", {}, lambda compare=compare: (compare(), {})


def rows(name: str, batch: int, dtype: str) -> list[results.Row]:
    """A row for every execution and share of open gates."""
    subject = gated_subject(name, batch, dtype)
    dense, found = _compiled(subject, "dense"), []
    expected = {share: dense(share) for share in SHARES}
    for execution in EXECUTIONS if batch > 1 else ("cond",):
        other = _compiled(subject, execution)
        for share in SHARES:
            row = {"network": name, "batch_size": batch, "dtype": dtype, "execution": execution}
            row |= {"open_share": float(expected[share][1].mean())}
            found.append(row | compare(expected[share], other(share), ALLOWED[dtype]))
    return found


def gated_subject(name: str, batch: int, dtype: str) -> Subject:
    """A network of `inference_networks.NETWORKS` with its own gates, random weights and images."""
    networks, gated = inference_networks.NETWORKS, f"gated {name}"
    # `drawn_subject` finds a network by its name.
    networks.setdefault(gated, dataclasses.replace(networks[name], gated=True))
    return inference_cases.drawn_subject(gated, batch, dtype, usages=())


def _compiled(subject: Subject, execution: str) -> Callable[[float], Outputs]:
    """f(share of open gates) -> outputs of an execution, which is compiled once."""
    mode = Mode(execution=cast(Execution, execution))
    images = jnp.asarray(subject.images, subject.dtype)

    def forward(params: Any, batch_stats: Any, images: Any, inputs: GateInputs) -> Any:
        network = nnx.merge(subject.graph, nnx.State(params), nnx.State(batch_stats))
        output = network(images, inputs, mode)
        return output.prediction, output.gates, output.gate_logits - inputs.offset

    variables = subject.params, subject.batch_stats
    compiled, _ = timing.compile_timed(forward, *variables, images, _inputs(subject, 0.0))
    return lambda share: jax.device_get(compiled(*variables, images, _inputs(subject, share)))


def _inputs(subject: Subject, share: float) -> GateInputs:
    """Another S for every sample, and offsets that open about `share` of its gates."""
    rng, shape = np.random.default_rng(round(100 * share)), (len(subject.images),)
    scale = rng.random(shape, np.float32)
    shape += (subject.arch.num_gates,)
    offset = DECIDED + np.abs(rng.normal(size=shape))
    offset = np.where(rng.random(shape) < share, offset, -offset).astype(np.float32)
    return GateInputs(jnp.asarray(scale), offset=jnp.asarray(offset))


def compare(dense: Outputs, other: Outputs, allowed: float) -> results.Row:
    """How far an execution's outputs are from dense's, and whether that counts as equal.

    Differences are the largest one's share of the largest number. Numbers that are not finite equal
    nothing.
    """
    apart = {
        "relative_difference": _difference(dense[0], other[0]),
        "scores_difference": _difference(dense[2], other[2]),
    }
    flipped = int((dense[1] != other[1]).sum())
    equal = flipped == 0 and max(apart.values()) <= allowed
    return {**apart, "flipped_gates": flipped, "allowed": allowed, "equal": equal}


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return NOT_FINITE
    apart, largest = np.abs(expected.astype(np.float64) - found).max(), np.abs(expected).max()
    if not largest:
        return NOT_FINITE if apart else 0.0
    return float(apart / largest)


if __name__ == "__main__":
    main(sys.argv)
