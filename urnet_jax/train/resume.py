"""Whether a run may go on in a workdir, and from where."""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import jax
from etils import epath

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError, writable
from urnet_jax.nets import network
from urnet_jax.nets.mode import Build
from urnet_jax.phases import PHASES
from urnet_jax.runs import checkpoint, pretrained
from urnet_jax.runs.meta import FOLDER, Meta
from urnet_jax.runs.torch_files import read_state_dict
from urnet_jax.train import state as state_lib
from urnet_jax.xla import sharding

DAMAGED = "damaged"
"""The folder of a workdir that damaged checkpoints are moved to."""


def newest_whole(workdir: epath.PathLike) -> Meta | None:
    """What the newest whole checkpoint says, None where there is none; sets damaged ones aside.

    Raises:
      UserError: there are checkpoints, and all are damaged; they stay where they are.
    """
    found = -1
    with sharding.failing_together():
        if sharding.is_main():
            meta, damaged = checkpoint.find_whole(workdir)
            found = -1 if meta is None else meta.step
            for step, error in damaged.items():
                _set_aside(workdir, step, error)
            checkpoint.remove_leftovers(workdir, found)
    found = sharding.decided_by_main(found)
    return None if found < 0 else checkpoint.read_meta(workdir, found)


def _set_aside(workdir: epath.PathLike, step: int, error: UserError) -> None:
    target = epath.Path(workdir) / DAMAGED / str(step)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{step}.{number}")
    with writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        (epath.Path(workdir) / FOLDER / str(step)).rename(target)
    reason = str(error).split("; move that folder")[0]
    print(f"warning: {reason}: it was moved to {target}.", file=sys.stderr)


def check_workdir(workdir: epath.PathLike, config: Config) -> Meta | None:
    """What the newest whole checkpoint says, if there is one and `config` can go on from it.

    Raises:
      UserError: it is of another dataset, network, batch size or seed, it began from other
        weights, or it has another optimiser in the phase that it is in.
    """
    found = newest_whole(workdir)
    if found is None:
        return None
    phase, where = found.phase, f"The workdir {workdir} holds a checkpoint of a"
    advice = "choose another --workdir, or ask for what it holds."
    if config.data.name != found.config.data.name:
        raise UserError(
            f"{where} network for {found.config.data.name}, and the config asks for "
            f"{config.data.name}: {advice}"
        )
    for section, name in (("data", "batch_size"), ("", "seed")):
        before, now = (c[section][name] if section else c[name] for c in (found.config, config))
        if before != now:
            raise UserError(
                f"{where} run with {name} {before}, and the config asks for {now}, which would "
                f"train on other examples from here on: {advice}"
            )
    for name in begun_from(phase, config_lib.phases_to_run(found.config)):
        before, now = (config_lib.flatten(c)[name] for c in (found.config, config))
        # What it began from may have been moved since, or never came along.
        if epath.Path(before).name != epath.Path(now).name:
            raise UserError(
                f"{where} run that began with {name} {before!r}, and the config asks for {now!r}, "
                f"from which it cannot begin any more: {advice}"
            )
    asked, held = config_lib.architecture(config), config_lib.architecture(found.config)
    if differing := _differences(asked, held):
        raise UserError(
            f"{where} {held.describe()}, and the config asks for another ({differing}): {advice}"
        )
    if PHASES[phase].own_gates and _anchors(found.config) != _anchors(config):
        held_to = found.config.scale
        raise UserError(
            f"{where} run with scale.dual_rate {held_to.dual_rate} and scale.anchors "
            f"{held_to.anchors}, and the config asks for {config.scale.dual_rate} and "
            f"{config.scale.anchors}, to which its multipliers do not belong: {advice}"
        )
    before, now = found.config[phase], config[phase]
    if before != now and _structure(config, found) != _structure(found.config, found):
        shaping = ("clip_norm", "gate_optimizer", "gate_learning_rate_factor", "ema_decay")
        changed = [name for name in shaping if before[name] != now[name]]
        values = " and ".join(f"{phase}.{n} {before[n]}, not {now[n]}" for n in changed)
        raise UserError(f"{where} phase that began with {values}: {advice}")
    return found


def begun_from(phase: str, phases: Iterable[str] = tuple(PHASES)) -> list[str]:
    """The fields that say what a run began from that is in `phase`, and runs through `phases`."""
    order = list(PHASES)
    ran = [name for name in phases if order.index(name) <= order.index(phase)]
    return ["init.from", *(f"{name}.init_from" for name in ran)]


def check_num_examples(workdir: epath.PathLike, found: Meta, num_examples: int) -> None:
    """Refuses to go on with a training split of another length: it would be other examples.

    Args:
      workdir: of the run.
      found: what its newest whole checkpoint says.
      num_examples: those of the training split as it is now.

    Raises:
      UserError: there were more or fewer.
    """
    before = round(found.steps_per_epoch * found.config.data.batch_size)
    with sharding.failing_together():  # A host may hold other data.
        if before != num_examples:
            raise UserError(
                f"The workdir {workdir} holds a checkpoint of a run on {before:,} training images, "
                f"and {found.config.data.name} now has {num_examples:,}, which would train on "
                "other examples from here on: bring back the dataset as it was, or choose another "
                "--workdir."
            )


def check_init(config: Config, phase: str) -> None:
    """Refuses an `init.from` that a run cannot begin from, whose first phase is `phase`.

    Raises:
      UserError: the file is no checkpoint of the config's network, or the phase has an `init_from`
        of its own.
    """
    source = config.init["from"]
    if not source:
        return
    if config[phase].init_from:
        raise UserError(
            f"init.from is {source} and {phase}.init_from {config[phase].init_from}: a run begins "
            "from one of them; leave the other empty."
        )
    arch = config_lib.architecture(config)
    tensors = read_state_dict(source)
    pretrained.check(tensors, arch, source, new_head=config.init.head == "new")


def check_init_from(config: Config, phase: str) -> None:
    """Refuses an `init_from` whose network does not fit the config's.

    The other run may be plain where this one is gated, or its gates untrained: they begin anew.

    Raises:
      UserError: the folder holds no checkpoint, or one of another architecture.
    """
    source = config[phase].init_from
    if not source:
        return
    meta = checkpoint.newest_meta(source)
    if meta is None:
        raise UserError(
            f"{phase}.init_from is {source}, which holds no checkpoint; name the workdir of a run."
        )
    asked, held = config_lib.architecture(config), config_lib.architecture(meta.config)
    ignored = {"gated"} | ({"image_size"} if _fits_any_size(held, asked.image_size) else set())
    if not (asked.gated and held.gated) or gates_are_untrained(meta):
        ignored |= {"gate_network", "gate_reduction", "gate_prior", "gate_norm"}
    if differing := _differences(asked, held, ignored):
        raise UserError(
            f"{phase}.init_from is {source}, which holds a {held.describe()}, and the config asks "
            f"for another network ({differing}): name a run of the same network."
        )


def _fits_any_size(arch: Any, image_size: Any) -> bool:
    """Whether the network has the same weights for images of another size, as it need not."""
    other = dataclasses.replace(arch, image_size=image_size)
    trees = (network.abstract_variables(each, Build()) for each in (arch, other))
    first, second = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in trees)
    return first == second


def gates_are_untrained(meta: Meta) -> bool:
    """Whether nobody has trained the gates of a run's network, in that run or before it."""
    begun_from = meta.config.init["from"], meta.config.pretrain.init_from
    return not PHASES[meta.phase].own_gates and not any(begun_from)


def _differences(asked: Any, held: Any, ignored: Iterable[str] = ()) -> str:
    """For people: 'depth 14, not 8'; empty if they are the same."""
    if type(asked) is not type(held):
        return f"{asked.describe()}, not {held.describe()}"
    names = [field.name for field in dataclasses.fields(held) if field.name not in ignored]
    pairs = [(name, getattr(asked, name), getattr(held, name)) for name in names]
    return ", ".join(f"{name} {new}, not {old}" for name, new, old in pairs if new != old)


def _anchors(config: Config) -> tuple[float, ...] | None:
    """Those that a controller's multipliers belong to; None without a controller."""
    controlled = config.scale.dual_rate > 0 and config_lib.architecture(config).gated
    return config.scale.anchors if controlled else None


def _structure(config: Config, meta: Meta) -> Any:
    """What the state of the phase that `meta` is in is made of."""
    return jax.tree.structure(state_lib.abstract_state(config, meta.phase, meta.steps_per_epoch))
