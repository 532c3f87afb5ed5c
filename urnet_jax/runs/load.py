"""The network of a run's checkpoint, without its optimiser."""

from typing import Literal, NamedTuple

import jax
from etils import epath

from urnet_jax.config import network as network_of
from urnet_jax.errors import UserError
from urnet_jax.nets import network
from urnet_jax.nets.network import Tree
from urnet_jax.runs import checkpoint
from urnet_jax.runs.meta import Meta
from urnet_jax.runs.retention import best_steps


class LoadedNetwork(NamedTuple):
    """A network as a checkpoint holds it.

    Attributes:
      meta: of the checkpoint, the run's config included.
      params: the network's parameters; where the phase averages them, the averages.
      batch_stats: BatchNorm's running statistics.
    """

    meta: Meta
    params: Tree
    batch_stats: Tree


def load_network(
    workdir: epath.PathLike, which: Literal["newest", "best"] | int = "newest"
) -> LoadedNetwork:
    """Reads the network of a checkpoint; its arrays lie on this process's first device.

    Args:
      workdir: of the run.
      which: the newest whole checkpoint, the best by `Meta.score`, or that of a step.

    Raises:
      UserError: `workdir` holds no such checkpoint, or it is damaged.
    """
    meta = find_meta(workdir, which)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, batch_stats = network.abstract_variables(*network_of(meta.config))
    averaged = meta.config[meta.phase].ema_decay > 0
    held = {"params": params, "batch_stats": batch_stats}
    # Without a sharding of its own, Orbax restores an array to the device it was saved from.
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        {"ema_params": held} if averaged else held,
    )
    parts = checkpoint.restore_part(workdir, meta.step, abstract)
    parts = parts["ema_params"] if averaged else parts
    return LoadedNetwork(meta, parts["params"], parts["batch_stats"])


def find_meta(workdir: epath.PathLike, which: Literal["newest", "best"] | int) -> Meta:
    """What `load_network` would read, without its arrays; a UserError as there."""
    meta = None
    if which == "newest":
        meta = checkpoint.newest_meta(workdir)
    elif scores := checkpoint.scores(workdir):
        step = next(iter(best_steps(scores)), None) if which == "best" else which
        if step not in scores:
            held = ", ".join(map(str, scores))
            raise UserError(
                f"The workdir {workdir} holds no checkpoint {which}; it holds the steps {held}"
                + (", none evaluated." if which == "best" else ".")
            )
        checkpoint.check_files(workdir, step)
        meta = checkpoint.read_meta(workdir, step)
    if meta is None:
        raise UserError(
            f"The workdir {workdir} holds no checkpoint; train there first: "
            f"python train.py --workdir={workdir}."
        )
    return meta
