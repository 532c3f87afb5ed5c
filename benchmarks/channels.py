"""Time of inference against FLOPs: does the clock follow the channels that gates switch off?

    python benchmarks/channels.py [--networks=resnet50] [--groups=64] [--batch_sizes=1,8] ...

--networks         of resnet20 (32 px), resnet18 and resnet50 (224 px); default: all three
--groups           channels of a gate, of 1, 16 and 64 (ResNet-20: 1 and 16); default: all
--batch_sizes      default: 1,8,32
--usages           shares of gates that are open, from 0 to 1; default: 0.25,0.5,0.75,1
--executions       of auto, dense, cond, compact, pieces and filters; default: auto
--dtype            float32 (default) or bfloat16
--repeats          timed rounds over all cases of a group; default: 5
--check            compares every execution's logits with dense's before it is timed (default)
--torch            also times PyTorch, dense and masking channels (default)
--torch_compile    also times PyTorch's dense network through torch.compile (default: False)
--trained_workdir  also times this run's checkpoint on real test images
--data_dir         where that run's data lies
--output           the folder for the results; default: runs/benchmarks/channels; what is to be
                   kept in the repository: results/channels
--fresh            measures again what is there already
--time_limit_s     after these seconds no further group is started

A group is a network with a batch size. Its cases are timed in turn, and its results are written
when it is done: the same command goes on where it was stopped.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import flags
from etils import epath

from benchmarks import (
    inference,
    inference_cases,
    inference_networks,
    inference_report,
    results,
    timing,
)
from urnet_jax.errors import UserError, told_to_the_user

NETWORKS = ("resnet20", "resnet18", "resnet50")


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user(inference.INTERRUPTED), timing.without_compilation_cache():
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values, groups = flags.FlagValues(), tuple(map(str, inference_networks.GROUPS))
    flags.DEFINE_list("groups", list(groups), "", flag_values=values)
    flags.DEFINE_boolean("torch", True, "", flag_values=values)
    flags.DEFINE_boolean("torch_compile", False, "", flag_values=values)
    for name in ("trained_workdir", "data_dir"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    inference.parse_cases(values, argv, __doc__ or "", "channels", NETWORKS, ("1", "8", "32"))
    inference.check_choices("groups", values.groups, groups)
    if values.networks == ["resnet20"] and values.groups == ["64"]:
        raise UserError("--groups is '64', wider than --networks=resnet20: choose 1 or 16.")
    return values


def run(values: flags.FlagValues) -> epath.Path:
    """Times every group that the flags ask for and that has not been timed; returns the file."""
    if values.torch:
        from benchmarks import torch_networks

        torch_networks.device_name(jax.devices()[0].platform)
    if values.trained_workdir:
        inference_cases.open_run(values.trained_workdir, values.data_dir)
    path, record = results.measure(_groups(values), values)
    inference_report.print_table(record["rows"])
    print(path, *inference_report.write_plot(record, path.with_suffix(".png")), sep="\n")
    return path


def _groups(values: flags.FlagValues) -> Iterator[results.Group]:
    flag_names = ("executions", "repeats", "check", "torch", "torch_compile")
    settings = {name: values[name].value for name in flag_names}
    known = inference_networks.CHANNEL_NETWORKS
    asked = (f"{name} channels/{group}" for name in values.networks for group in values.groups)
    sizes: list[int] = values.batch_sizes
    for name, batch in itertools.product(filter(known.__contains__, asked), sizes):
        kind = inference.Kind(name, batch, values.dtype)
        measure = functools.partial(inference.measure, kind, values)
        yield str(kind), settings | {"usages": values.usages}, measure
    if values.trained_workdir:
        for batch in values.batch_sizes:
            kind = inference.Kind("trained", batch, values.dtype)
            measure = functools.partial(inference.measure, kind, values)
            yield str(kind), settings | {"workdir": values.trained_workdir}, measure


if __name__ == "__main__":
    main(sys.argv)
