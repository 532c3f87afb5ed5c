"""The trainer: three phases, one after another, resumable at any step."""

import contextlib
import dataclasses

from clu import parameter_overview
from etils import epath
from flax import traverse_util
from grain.python import DatasetIterator
from tqdm import tqdm

from urnet_jax import checkpoint, data, evaluation, optimizer, report, steps, writers
from urnet_jax import config as config_lib
from urnet_jax import state as state_lib
from urnet_jax.checkpoint import Checkpointer, Meta
from urnet_jax.config import Config
from urnet_jax.errors import UserError, make_folder
from urnet_jax.progress import PhaseProgress
from urnet_jax.state import TrainState
from urnet_jax.writers import MetricWriter


def train_and_evaluate(config: Config, workdir: epath.PathLike) -> None:
    """Trains through the phases of `config`, going on from the newest checkpoint of `workdir`.

    Interrupted and started again, a run ends bit for bit where it would have ended (on CPU).

    Raises:
      UserError: the config, the data directory or the workdir does not fit; before any long work.
    """
    # ---- All that can be wrong, before anything takes long ----
    config_lib.validate(config)
    phases = phases_to_run(config)
    found = checkpoint.check_workdir(workdir, config)
    for phase in phases:
        if found is None or is_before(found.phase, phase):
            checkpoint.check_init_from(config, phase)
    if config.log.tensorboard:
        writers.check_tensorboard()

    # ---- Data ----
    train_split = data.open_split(config.data, "train")
    test_split = data.open_split(config.data, "test")
    batches = iter(data.train_batches(train_split, config.data, seed=config.seed))
    steps_per_epoch = train_split.num_examples / config.data.batch_size

    # ---- Begin, or go on ----
    make_folder(epath.Path(workdir) / checkpoint.FOLDER, "--workdir")
    checkpointer = Checkpointer(workdir, keep=config.checkpoint.keep)
    if found is None:
        begun, step = phases[0], 0
        state = start_phase(config, begun, steps_per_epoch, before=None)
        report_network(config, state)
    else:
        begun, step = found.phase, found.step
        print(f"Going on from step {step}: step {found.phase_step} of phase {begun}.")
        report_changes(found.config, config)
        abstract = state_lib.abstract_state(config, begun, steps_per_epoch)
        state = checkpointer.restore_state(step, abstract)
        checkpointer.restore_data(step, batches)
    (epath.Path(workdir) / "config.json").write_text(config_lib.to_json(config))
    writer = MetricWriter(workdir, resume_step=step, tensorboard=config.log.tensorboard)

    # ---- Phases ----
    run = Run(config, steps_per_epoch, checkpointer, writer, test_split)
    with contextlib.closing(checkpointer), contextlib.closing(writer), contextlib.closing(batches):
        for phase in phases:
            if is_before(phase, begun):
                continue
            if phase != begun:
                state = start_phase(config, phase, steps_per_epoch, before=state)
            state = run_phase(run, phase, state, batches)


def is_before(phase: str, other: str) -> bool:
    """Whether `phase` runs before the phase `other`."""
    return optimizer.PHASES.index(phase) < optimizer.PHASES.index(other)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from a run's first step to its last."""

    config: Config
    steps_per_epoch: float
    checkpointer: Checkpointer
    writer: MetricWriter
    test_split: data.Split


def phases_to_run(config: Config) -> list[str]:
    """The phases that have a length, in order; a plain network has no gates to train alone.

    Raises:
      UserError: no phase has a length.
    """
    phases = [phase for phase in optimizer.PHASES if config[phase].epochs > 0]
    if not config.model.gated:
        phases = [phase for phase in phases if phase != "gates"]
    if not phases:
        raise UserError(
            "No phase has a length: set pretrain.epochs, gates.epochs or joint.epochs above 0 "
            "(a plain network has no phase gates)."
        )
    return phases


def start_phase(
    config: Config, phase: str, steps_per_epoch: float, before: TrainState | None
) -> TrainState:
    """The first state of a phase: weights from `init_from`, else from the phase before it."""
    if before is None:
        params, batch_stats = state_lib.init_variables(config)
    else:
        params, batch_stats = before.eval_params, before.batch_stats
    if config[phase].init_from:
        _, found, batch_stats = checkpoint.load_for_evaluation(config[phase].init_from)
        # Gates that the other run lacks keep the weights that they have here.
        flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(found)
        params = {path: flat[path] for path in traverse_util.flatten_dict(params)}
        params = traverse_util.unflatten_dict(params)
    step = 0 if before is None else before.step
    return state_lib.begin_phase(params, batch_stats, config, phase, steps_per_epoch, step)


def run_phase(run: Run, phase: str, state: TrainState, batches: DatasetIterator) -> TrainState:
    """Trains to the end of the phase; evaluates and saves on the way and at the end."""
    config = run.config
    num_steps = optimizer.num_steps(config[phase].epochs, run.steps_per_epoch)
    eval_every = optimizer.num_steps(config.eval.every_epochs, run.steps_per_epoch)
    save_every = optimizer.num_steps(config.checkpoint.every_epochs, run.steps_per_epoch)
    first = int(state.phase_step)
    offset = int(state.step) - first
    if first >= num_steps:
        print(f"Phase {phase} is finished.")
        return state
    train_step = steps.make_train_step(config, phase, run.steps_per_epoch)
    eval_step = steps.make_eval_step(config, phase)
    progress = PhaseProgress(
        run.writer, phase, first=first, num_steps=num_steps,
        every_steps=config.log.every_steps, batch_size=config.data.batch_size,
    )  # fmt: skip

    for n in range(first + 1, num_steps + 1):
        # ---- Step: dispatched, not waited for ----
        state, metrics = train_step(state, next(batches))
        progress.add(offset + n, n, metrics)
        last = n == num_steps
        evaluates = last or (eval_every and n % eval_every == 0)
        saves = last or (save_every and n % save_every == 0)
        if not (evaluates or saves):
            continue

        # ---- Evaluate, save ----
        progress.pause()
        if evaluates:
            evaluate(run, phase, offset + n, state, eval_step, is_last=last)
        if saves:
            meta = Meta(offset + n, phase, n, num_steps, run.steps_per_epoch, config)
            run.checkpointer.save(state, batches, meta)
        progress.resume()
    progress.close()
    return state


def evaluate(
    run: Run, phase: str, step: int, state: TrainState, eval_step: steps.EvalStep, *,
    is_last: bool,
) -> None:  # fmt: skip
    """Evaluates on the test split, writes a line per S, and shows a table where `is_last`."""
    config = run.config
    scales = (1.0,) if phase == "pretrain" else config.eval.scales
    summary = evaluation.summarize(
        evaluation.evaluate(
            eval_step,
            state.eval_params,
            state.batch_stats,
            run.test_split,
            config,
            scales,
            config.eval.batch_size,
            progress=False,
        )  # fmt: skip
    )
    for row in summary.to_dict("records"):
        run.writer.write("eval", step, {"phase": phase, **row})
    if is_last:
        report.print_table(summary, f"After phase {phase}, step {step}, test split")
        return
    shown = ", ".join(
        f"{row['top1_percent']:.2f} at S {row['scale']:g} (usage {row['usage_mean']:.2f})"
        for row in summary.to_dict("records")
    )
    tqdm.write(f"{phase} step {step}: top-1 {shown}")


def report_network(config: Config, state: TrainState) -> None:
    """Prints what is about to be trained."""
    count = parameter_overview.count_parameters(state.params)
    print(f"{config_lib.architecture(config).describe()}: {count:,} parameters")


def report_changes(before: Config, now: Config) -> None:
    """Prints the fields in which a run that goes on differs from how it began."""
    old, new = config_lib.flatten(before), config_lib.flatten(now)
    for name in new:
        if old.get(name) != new[name]:
            print(f"config.{name} was {old.get(name)!r} and is {new[name]!r} from here on.")
