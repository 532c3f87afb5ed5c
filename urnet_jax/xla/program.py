"""What a compiled program holds, read from its text: multiply-adds and collectives of one device.

XLA's own cost analysis counts a loop's body once, however often the loop runs; here it counts as
often as it runs.
"""

import functools
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16}
"""Of the types whose name does not end with how many they have."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%?([\w.\-]+)")


class Operation(NamedTuple):
    """One line of a program: what it gives (a type), what it does, and with what."""

    root: str | None
    name: str
    result: str
    opcode: str
    rest: str


class Collective(NamedTuple):
    """What a program exchanges in one way: how many times, and bytes of the results."""

    count: int
    bytes: int


class Cost(NamedTuple):
    """Of one run of a program on one device.

    Attributes:
      macs: multiply-adds of convolutions and matrix products; positions that a dilation fills with
        zeros are not counted, those on a padded border are.
      collectives: by kind, of COLLECTIVES.
    """

    macs: int
    collectives: dict[str, Collective]


def count(text: str) -> Cost:
    """Counts in a compiled program's text, as `jax.stages.Compiled.as_text` gives it.

    Of the branches of a conditional the costliest is counted.

    Raises:
      ValueError: the text has no entry, or a loop in which there is something to count does not say
        how often it runs.
    """
    entry, computations = _parse(text)
    shapes = {op.name: op.result for ops in computations.values() for op in ops}

    @functools.cache
    def computation(name: str) -> Cost:
        return _total((operation(op), 1) for op in computations[name])

    def operation(op: Operation) -> Cost:
        if op.opcode in ("convolution", "dot"):
            return Cost(_macs(op, shapes), {})
        if (kind := op.opcode.removesuffix("-start")) in COLLECTIVES:
            return Cost(0, {kind: Collective(1, _collective_bytes(op))})
        if op.opcode.endswith(("-done", "-update")):
            return Cost(0, {})  # What an asynchronous operation does is counted where it starts.
        if op.opcode == "conditional":
            return max(map(computation, _branches(op)), key=lambda cost: cost.macs)
        called = _total((computation(name), 1) for name in _CALLED.findall(op.rest))
        if op.opcode != "while" or called == Cost(0, {}):
            return called
        return _total([(called, _trips(op, computations))])

    return computation(entry)


def naive_convolutions(text: str) -> list[str]:
    """The convolutions of a program for CPU that XLA does not hand to Eigen, by their names.

    It computes them in naive loops, 15 to 150 times slower. They are those of another layout, and
    those whose input is smaller than the kernel. In a loop XLA does not bring a gradient to Eigen's
    layout, even if it unrolls the loop afterwards.

    Raises:
      ValueError: the text has no entry.
    """
    _, computations = _parse(text)
    operations = [op for ops in computations.values() for op in ops]
    shapes = {op.name: op.result for op in operations}

    def is_naive(op: Operation) -> bool:
        if "dim_labels=b01f_01io->b01f" not in op.rest or "rhs_reversal" in op.rest:
            return True
        ((_, images),), ((_, kernel),) = (_arrays(shapes[name]) for name in _operands(op))
        return any(n < k for n, k in zip(images[1:3], kernel[:2], strict=True))

    return [op.name for op in operations if op.opcode == "convolution" and is_naive(op)]


def _parse(text: str) -> tuple[str, dict[str, list[Operation]]]:
    """The name of the entry, and the operations of every computation."""
    computations: dict[str, list[Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (parsed := _OPERATION.match(line)):
            current.append(Operation(*parsed.groups()))
    if not entry:
        raise ValueError("The program's text has no ENTRY computation; expected XLA's own form.")
    return entry, computations


def _total(costs: Iterable[tuple[Cost, int]]) -> Cost:
    """The sum of costs, each so many times."""
    macs, found = 0, {kind: (0, 0) for kind in COLLECTIVES}
    for cost, times in costs:
        macs += times * cost.macs
        for kind, (number, size) in cost.collectives.items():
            found[kind] = found[kind][0] + times * number, found[kind][1] + times * size
    return Cost(macs, {kind: Collective(*had) for kind, had in found.items() if had[0]})


def _trips(loop: Operation, computations: dict[str, list[Operation]]) -> int:
    """How often a loop runs: XLA says it, or else its condition, `counter < constant`.

    JAX's loops of a known length count from 0 by ones.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
    operations = {op.name: op for op in computations[condition[1]]} if condition else {}
    for root in operations.values():
        if root.root and root.opcode == "compare" and "direction=LT" in root.rest:
            limit = operations.get(_operands(root)[1])
            if limit and limit.opcode == "constant":
                return int(limit.rest.split(")")[0])
    raise ValueError(f"The loop {loop.name} does not say how often it runs.")


def _branches(op: Operation) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1])
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", op.rest)


def _macs(op: Operation, shapes: dict[str, str]) -> int:
    (out,) = _arrays(op.result)
    operands = [shapes[name] for name in _operands(op)]
    if op.opcode == "dot":
        ((_, left),) = _arrays(operands[0])
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        axes = contracted[1].split(",") if contracted and contracted[1] else []
        return math.prod(out[1]) * math.prod(left[int(axis)] for axis in axes)
    ((_, kernel),) = _arrays(operands[1])
    layout = re.search(r"dim_labels=\w+_(\w+)->", op.rest)
    if not layout:
        raise ValueError(f"The convolution {op.name} does not name its dimensions.")
    inputs = kernel[layout[1].index("i")]
    window, dilation = (
        math.prod(map(int, found[1].split("x"))) if found else 1
        for found in (re.search(rf"\b{name}=([\dx]+)", op.rest) for name in ("size", "lhs_dilate"))
    )
    return math.prod(out[1]) * inputs * window // dilation


def _operands(op: Operation) -> list[str]:
    return re.findall(r"%([\w.\-]+)", op.rest.split(")")[0])


def _collective_bytes(op: Operation) -> int:
    result = op.result
    if op.opcode.endswith("-start") and not op.opcode.startswith("all-reduce"):
        result = _elements(result)[1]  # It gives its operands, its results, and more.
    return sum(_size(dtype) * math.prod(shape) for dtype, shape in _arrays(result))


def _elements(result: str) -> list[str]:
    """What a tuple type is made of, at its outermost level."""
    depth, found = 0, [""]
    for character in result.strip()[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return found


def _arrays(result: str) -> list[tuple[str, list[int]]]:
    """Type and shape of each array in an operation's result."""
    return [
        (dtype, [int(size) for size in shape.split(",") if size])
        for dtype, shape in _ARRAY.findall(result)
    ]


def _size(dtype: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", dtype)
    bits = _BITS.get(dtype) or (int(digits[1]) if digits else 0)
    return -(-bits // 8)
