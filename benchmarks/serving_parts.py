"""Benchmarks of a server in parts: the flags that they share, and the record."""

import functools
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from benchmarks import results, timing
from urnet_jax.errors import UserError
from urnet_jax.runs import export

Measure = Callable[[flags.FlagValues], tuple[list[results.Row], dict[str, str]]]


def parse(
    argv: list[str], doc: str, benchmark: str, parts: Sequence[str],
    wholes: Mapping[str, int], floats: Mapping[str, float],
) -> flags.FlagValues:  # fmt: skip
    """The command's flags.

    Args:
      argv: of the command.
      doc: what --help prints.
      benchmark: its name.
      parts: that --parts chooses from; by default all.
      wholes: flags of its own that are whole numbers from 1 up, and their defaults.
      floats: those that are numbers above 0.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_string("parts", ",".join(parts), "", flag_values=values)
    for name, default in wholes.items():
        flags.DEFINE_integer(name, default, "", lower_bound=1, flag_values=values)
    for name, default in floats.items():
        flags.DEFINE_float(name, default, "", lower_bound=1e-3, flag_values=values)
    results.define_flags(values, benchmark)
    timing.parse_flags(values, argv, doc)
    if not values.workdir:
        raise UserError("--workdir is missing; name a calibrated run.")
    if unknown := [part for part in values.parts.split(",") if part not in parts]:
        raise UserError(f"--parts names {unknown[0]!r}; expected some of {', '.join(parts)}.")
    return values


def measure(values: flags.FlagValues, parts: Mapping[str, tuple[Measure, Sequence[str]]]) -> None:
    """Measures the chosen parts and prints where the record is.

    Args:
      values: of `parse`.
      parts: how each is measured, and the flags that it depends on.
    """
    network = str(export.bundle_of(values.workdir, "newest").meta.config.data.name)
    groups: list[results.Group] = []
    for part in values.parts.split(","):
        run, names = parts[part]
        settings = {"network": network} | {name: values[name].value for name in names}
        groups.append((part, settings, functools.partial(run, values)))
    path, _ = results.measure(groups, values, timed=False)  # Servers are others, and busy.
    print(path)
