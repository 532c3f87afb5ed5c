"""What a run and its phases begin from."""

from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.nets import network
from urnet_jax.phases import PHASES
from urnet_jax.runs import calibration, kept, pretrained
from urnet_jax.runs.load import load_network
from urnet_jax.runs.meta import Meta
from urnet_jax.train import resume
from urnet_jax.train import state as state_lib
from urnet_jax.train.state import TrainState
from urnet_jax.xla import sharding


def check(config: Config, workdir: epath.PathLike) -> Meta | None:
    """What the checkpoint says that the run goes on from, None for a run that begins.

    Raises:
      UserError: the run cannot go on from it, or a phase cannot begin from the weights it names.
    """
    found, phases = resume.check_workdir(workdir, config), config_lib.phases_to_run(config)
    if found is None:
        with sharding.failing_together():  # A host may lack the file.
            resume.check_init(config, phases[0])
    for phase in phases:
        if found is None or is_before(found.phase, phase):
            resume.check_init_from(config, phase)
    return found


def is_before(phase: str, other: str) -> bool:
    """Whether `phase` runs before the phase `other`."""
    return list(PHASES).index(phase) < list(PHASES).index(other)


def start_phase(
    config: Config, phase: str, steps_per_epoch: float, before: TrainState | None, mesh: Mesh
) -> TrainState:
    """The first state of a phase.

    Weights are from the phase's `init_from`, else from the phase before it, else from `init.from`.
    """
    if before is None:
        params, batch_stats = pretrained.initial_variables(config)
    else:
        params, batch_stats = before.eval_variables
    if config[phase].init_from:
        meta, *found = load_network(config[phase].init_from)
        if resume.gates_are_untrained(meta):
            gates = network.gate_paths(*config_lib.network(meta.config))
            found = [network.split_gates(tree, gates)[1] for tree in found]
        # Gates that the other run lacks, or that nobody has trained, are those that begin here.
        params, batch_stats = map(network.replaced, (params, batch_stats), found)
    step = 0 if before is None else before.step
    begun = state_lib.begin_phase(params, batch_stats, config, phase, steps_per_epoch, step)
    return sharding.replicate(begun, mesh)


def report_network(config: Config, state: TrainState) -> None:
    """Prints what is about to be trained."""
    count = parameter_overview.count_parameters(state.params)
    print(f"{config_lib.architecture(config).describe()}: {count:,} parameters")
    if config.init["from"]:
        but = ", but for its last layer" if config.init.head == "new" else ""
        print(f"It begins with the weights of {config.init['from']}{but}.")


def report_going_on(workdir: epath.PathLike, found: Meta, config: Config) -> None:
    """Prints where a run goes on, what stays behind, and in which fields it differs from before."""
    print(f"Going on from step {found.step}: step {found.phase_step} of phase {found.phase}.")
    if kept.path_of(workdir, found.step, calibration.FILE).exists():
        print("Its calibration is of that step alone: calibrate again what is trained further.")
    old, new = config_lib.flatten(found.config), config_lib.flatten(config)
    # What it began from is behind it: that may have been moved since.
    behind = {"init.head", *resume.begun_from(found.phase)}
    for name in new:
        if old.get(name) != new[name] and name not in behind:
            print(f"config.{name} was {old.get(name)!r} and is {new[name]!r} from here on.")
