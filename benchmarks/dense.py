"""Time of dense prediction against FLOPs: does the clock follow what gates skip?

    python benchmarks/dense.py [--networks="pspnet18 plain"] [--batch_sizes=1,8] ...

--networks         of "pspnet18 plain", "pspnet18 channels/64" and "pspnet18 both/64", separated by
                   commas: gates of blocks, of groups of 64 channels, and of both; default: all
--batch_sizes      default: 1,8
--usages           shares of gates that are open, from 0 to 1; default: 0.25,0.5,0.75,1
--executions       of auto, dense, cond, compact, pieces and filters; default: auto
--dtype            float32 (default) or bfloat16
--repeats          timed rounds over all cases of a group; default: 5
--check            compares every execution's logits with dense's before it is timed (default)
--output           the folder for the results; default: runs/benchmarks/dense; what is to be kept in
                   the repository: results/dense
--fresh            measures again what is there already
--time_limit_s     after these seconds no further group is started

The networks see images of 240x180. A group is a network with a batch size. Its cases are timed in
turn, and its results are written when it is done: the same command goes on where it was stopped.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags
from etils import epath

from benchmarks import inference, inference_networks, inference_report, results, timing
from urnet_jax.errors import told_to_the_user


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user(inference.INTERRUPTED), timing.without_compilation_cache():
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values, known = flags.FlagValues(), tuple(inference_networks.DENSE_NETWORKS)
    inference.parse_cases(values, argv, __doc__ or "", "dense", known, ("1", "8"))
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Times every group that the flags ask for and that has not been timed; returns the file."""
    path, record = results.measure(_groups(values), values)
    inference_report.print_table(record["rows"])
    print(path, *inference_report.write_plot(record, path.with_suffix(".png")), sep="\n")
    return path


def _groups(values: flags.FlagValues) -> Iterator[results.Group]:
    settings = {name: values[name].value for name in ("executions", "repeats", "check", "usages")}
    for name, batch in itertools.product(values.networks, values.batch_sizes):
        kind = inference.Kind(name, batch, values.dtype)
        yield str(kind), settings, functools.partial(inference.measure, kind, values)


if __name__ == "__main__":
    main(sys.argv)
