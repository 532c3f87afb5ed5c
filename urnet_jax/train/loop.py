"""The trainer: three phases, one after another, resumable at any step, on any number of devices."""

import contextlib
import dataclasses

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from grain.python import DatasetIterator
from jax.sharding import Mesh
from tqdm import tqdm

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import Split
from urnet_jax.errors import Stopped, writable
from urnet_jax.evaluate import evaluation, table
from urnet_jax.evaluate.step import EvalStep, make_eval_step
from urnet_jax.nets import network
from urnet_jax.phases import PHASES
from urnet_jax.runs import pretrained, writers
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.load import load_network
from urnet_jax.runs.lock import locked
from urnet_jax.runs.meta import Meta
from urnet_jax.runs.writers import MetricWriter
from urnet_jax.train import interruption, optimizer, resume
from urnet_jax.train import state as state_lib
from urnet_jax.train.interruption import AskedToStop
from urnet_jax.train.progress import PhaseProgress
from urnet_jax.train.state import TrainState
from urnet_jax.train.step import make_train_step
from urnet_jax.xla import sharding


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from a run's first step to its last."""

    config: Config
    mesh: Mesh
    steps_per_epoch: float
    checkpointer: Checkpointer
    writer: MetricWriter
    test_split: Split
    batches: DatasetIterator
    asked_to_stop: AskedToStop


def train_and_evaluate(config: Config, workdir: epath.PathLike) -> None:
    """Trains through the phases of `config`, going on from the newest checkpoint of `workdir`.

    Interrupted and started again, a run ends bit for bit where it would have ended (on CPU), also
    on another number of devices or processes up to the rounding of sums. All processes of a run
    call this together; each batch is split over all their devices.

    Raises:
      UserError: the config, the data directory or the workdir does not fit, before any long work;
        the loss is not finite; or a checkpoint cannot be written.
      Stopped: the run was asked to stop, and has saved.
    """
    with sharding.only_main_speaks(), sharding.ended_with_its_peers():
        # ---- All that can be wrong, before anything takes long ----
        config_lib.validate(config)
        phases, mesh = config_lib.phases_to_run(config), sharding.make_mesh()
        sharding.check_batch_size(config.data.batch_size, mesh, config.accumulate_steps)
        if config.log.tensorboard:
            writers.check_tensorboard()
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(workdir))
            found = resume.check_workdir(workdir, config)
            if found is None:
                with sharding.failing_together():  # A host may lack the file.
                    resume.check_init(config, phases[0])
            for phase in phases:
                if found is None or is_before(found.phase, phase):
                    resume.check_init_from(config, phase)
            train_split, test_split = open_splits(config)
            if found is not None:
                resume.check_num_examples(workdir, found, train_split.num_examples)

            # ---- Run ----
            settings = config.checkpoint
            checkpointer = Checkpointer(workdir, keep=settings.keep, keep_best=settings.keep_best)
            stack.enter_context(contextlib.closing(checkpointer))
            with sharding.failing_together():
                writer = MetricWriter(
                    workdir, resume_step=found.step if found else 0,
                    tensorboard=config.log.tensorboard, silent=not sharding.is_main(),
                )  # fmt: skip
            stack.enter_context(contextlib.closing(writer))
            batches = iter(
                train_batches(
                    train_split,
                    config.data,
                    seed=config.seed,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                )  # fmt: skip
            )
            stack.enter_context(contextlib.closing(batches))
            asked_to_stop = stack.enter_context(interruption.watched())
            steps_per_epoch = train_split.num_examples / config.data.batch_size
            run = Run(
                config, mesh, steps_per_epoch, checkpointer, writer, test_split, batches,
                asked_to_stop,
            )  # fmt: skip
            with sharding.ended_with_its_peers():  # Closing would wait for them.
                run_phases(run, phases, found)
                checkpointer.wait()


def open_splits(config: Config) -> tuple[Split, Split]:
    """The training and the test split."""
    with sharding.failing_together():  # A host may lack the data.
        train_split = open_split(config.data, "train")
        test_split = open_split(config.data, "test")
    if train_split.num_examples < config.data.batch_size:
        print(
            f"Mind: data.batch_size is {config.data.batch_size}, more than the "
            f"{train_split.num_examples} training images: an epoch is less than a step."
        )
    return train_split, test_split


def run_phases(run: Run, phases: list[str], found: Meta | None) -> None:
    """Begins, or goes on from the checkpoint that `found` describes, and trains to the end."""
    config = run.config
    if found is None:
        begun = phases[0]
        state = start_phase(config, begun, run.steps_per_epoch, None, run.mesh)
        report_network(config, state)
    else:
        begun = found.phase
        print(f"Going on from step {found.step}: step {found.phase_step} of phase {begun}.")
        report_changes(found.config, config)
        where = sharding.replicated(run.mesh)
        abstract = state_lib.abstract_state(config, begun, run.steps_per_epoch, where)
        state = run.checkpointer.restore_state(found.step, abstract)
        run.batches.set_state({"step": found.step})
    with sharding.failing_together():
        path = run.checkpointer.directory.parent / "config.json"
        if sharding.is_main():
            with writable(path):
                path.write_text(config_lib.to_json(config))
    for phase in phases:
        if is_before(phase, begun):
            continue
        if phase != begun:
            state = start_phase(config, phase, run.steps_per_epoch, state, run.mesh)
        state = run_phase(run, phase, state)


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
        params, batch_stats = before.eval_params, before.batch_stats
    if config[phase].init_from:
        meta, *found = load_network(config[phase].init_from)
        begun_from = meta.config.init["from"], meta.config.pretrain.init_from
        if not PHASES[meta.phase].own_gates and not any(begun_from):
            gates = network.gate_paths(*config_lib.network(meta.config))
            found = [network.split_gates(tree, gates)[1] for tree in found]
        # Gates that the other run lacks, or that nobody has trained, are those that begin here.
        params, batch_stats = map(network.replaced, (params, batch_stats), found)
    step = 0 if before is None else before.step
    begun = state_lib.begin_phase(params, batch_stats, config, phase, steps_per_epoch, step)
    return sharding.replicate(begun, mesh)


def run_phase(run: Run, phase: str, state: TrainState) -> TrainState:
    """Trains to the end of the phase; evaluates and saves on the way and at the end."""
    config = run.config
    num_steps = optimizer.num_steps(config[phase].epochs, run.steps_per_epoch)
    eval_every = optimizer.num_steps(config.eval.every_epochs, run.steps_per_epoch)
    save_every = optimizer.num_steps(config.checkpoint.every_epochs, run.steps_per_epoch)
    first = int(state.phase_step)
    offset = int(state.step) - first
    eval_step = make_eval_step(config, phase, mesh=run.mesh)
    due = first >= num_steps or (first and eval_every and first % eval_every == 0)
    if due and not run.writer.has("eval", int(state.step)):  # It was stopped just there.
        evaluate(run, phase, int(state.step), state, eval_step, is_last=first >= num_steps)
    if first >= num_steps:
        print(f"Phase {phase} is finished.")
        return state
    train_step = make_train_step(config, phase, run.steps_per_epoch, run.mesh)
    progress = PhaseProgress(
        run.writer, phase, first=first, num_steps=num_steps,
        every_steps=config.log.every_steps, batch_size=config.data.batch_size,
    )  # fmt: skip

    for n in range(first + 1, num_steps + 1):
        # ---- Step: dispatched, not waited for; nothing moves to or from a device unasked ----
        batch = sharding.global_batch(next(run.batches), run.mesh)
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch)
            progress.add(offset + n, n, metrics)
        last, stop = n == num_steps, run.asked_to_stop(offset + n)
        evaluates = last or (eval_every and n % eval_every == 0)
        if not (evaluates or stop or (save_every and n % save_every == 0)):
            continue

        # ---- Evaluate, save ----
        progress.pause()
        meta = Meta(offset + n, phase, n, num_steps, run.steps_per_epoch, config)
        if evaluates and not stop:  # Whoever asked to stop may not wait for an evaluation.
            top1 = evaluate(run, phase, offset + n, state, eval_step, is_last=last)
            meta = dataclasses.replace(meta, top1_percent=top1)
        if last or stop or (save_every and n % save_every == 0):
            run.checkpointer.save(state, meta)
        if stop:
            run.checkpointer.wait()
            raise Stopped(
                f"{stop}: stopped after step {offset + n} and saved; the same command goes on.",
                interruption.EXIT_CODES[stop],
            )
        progress.resume()
    progress.close()
    return state


def evaluate(
    run: Run, phase: str, step: int, state: TrainState, eval_step: EvalStep, *,
    is_last: bool,
) -> float:  # fmt: skip
    """Evaluates on the test split, writes a line per S, and shows a table where `is_last`.

    Returns:
      Top-1 in percent, the mean over the scales.
    """
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
            mesh=run.mesh,
        )  # fmt: skip
    )
    for row in summary.to_dict("records"):
        run.writer.write("eval", step, {"phase": phase, **row})
    if is_last:
        table.print_table(summary, f"After phase {phase}, step {step}, test split")
    else:
        shown = ", ".join(
            f"{row['top1_percent']:.2f} at S {row['scale']:g} (usage {row['usage_mean']:.2f})"
            for row in summary.to_dict("records")
        )
        tqdm.write(f"{phase} step {step}: top-1 {shown}")
    return float(np.mean(summary["top1_percent"]))


def report_network(config: Config, state: TrainState) -> None:
    """Prints what is about to be trained."""
    count = parameter_overview.count_parameters(state.params)
    print(f"{config_lib.architecture(config).describe()}: {count:,} parameters")
    if config.init["from"]:
        print(f"It begins with the weights of {config.init['from']}.")


def report_changes(before: Config, now: Config) -> None:
    """Prints the fields in which a run that goes on differs from how it began."""
    old, new = config_lib.flatten(before), config_lib.flatten(now)
    for name in new:
        if old.get(name) != new[name]:
            print(f"config.{name} was {old.get(name)!r} and is {new[name]!r} from here on.")
