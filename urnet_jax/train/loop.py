"""The trainer: three phases, one after another, resumable at any step, on any number of devices."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pandas as pd
from etils import epath
from grain.python import DatasetIterator
from jax.sharding import Mesh

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.data.splits import Split
from urnet_jax.errors import Stopped, UserError, writable
from urnet_jax.evaluate import evaluation, table
from urnet_jax.evaluate.step import EvalStep, make_eval_step
from urnet_jax.nets import network
from urnet_jax.nets.cost import least_share
from urnet_jax.nets.tasks import measure_of
from urnet_jax.phases import PHASES
from urnet_jax.runs import writers
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.lock import locked
from urnet_jax.runs.meta import Meta
from urnet_jax.runs.writers import MetricWriter
from urnet_jax.train import averaging, feed, interruption, resume, start
from urnet_jax.train import state as state_lib
from urnet_jax.train.interruption import AskedToStop
from urnet_jax.train.plan import Plan
from urnet_jax.train.progress import PhaseProgress
from urnet_jax.train.state import TrainState
from urnet_jax.train.step import TrainStep, make_train_step
from urnet_jax.xla import sharding
from urnet_jax.xla.telling import say, telling


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from a run's first step to its last."""

    config: Config
    mesh: Mesh
    steps_per_epoch: float
    checkpointer: Checkpointer
    writer: MetricWriter
    train_split: Split
    test_split: Split
    batches: DatasetIterator
    asked_to_stop: AskedToStop


def train_and_evaluate(
    config: Config, workdir: epath.PathLike, *, asked_to_stop: AskedToStop | None = None,
    mesh: Mesh | None = None,
) -> None:  # fmt: skip
    """Trains through the phases of `config`, going on from the newest checkpoint of `workdir`.

    Interrupted and started again, a run ends bit for bit where it would have ended (on CPU), also
    on another number of devices or processes up to the rounding of sums. All processes of a run
    call this together; each batch is split over all their devices.

    Args:
      config: of the run.
      workdir: the run's folder; it is made where it is missing.
      asked_to_stop: asked after every step, on all processes with the same answer; by default
        SIGTERM and Ctrl-C stop the run.
      mesh: the devices that train, along one axis `data`; by default all of all processes.

    Raises:
      UserError: the config, the data directory or the workdir does not fit, before any long work;
        the loss is not finite; or a checkpoint cannot be written.
      Stopped: the run was asked to stop, and has saved.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sharding.only_main_speaks())
        stack.enter_context(sharding.ended_with_its_peers())

        # ---- All that can be wrong, before anything takes long ----
        config_lib.validate(config)
        mesh = sharding.make_mesh() if mesh is None else mesh
        sharding.check_batch_size(config.data.batch_size, mesh, config.accumulate_steps)
        if config.log.tensorboard:
            writers.check_tensorboard()
        stack.enter_context(locked(workdir))
        found = start.check(config, workdir)
        train_split, test_split = feed.open_splits(config)
        if found is not None:
            resume.check_num_examples(workdir, found, train_split.num_examples)

        # ---- What is closed in the end: first the input, with its threads and processes ----
        settings = config.checkpoint
        checkpointer = Checkpointer(workdir, keep=settings.keep, keep_best=settings.keep_best)
        stack.enter_context(contextlib.closing(checkpointer))
        with sharding.failing_together():
            writer = MetricWriter(
                workdir, resume_step=found.step if found else 0,
                tensorboard=config.log.tensorboard, silent=not sharding.is_main(),
            )  # fmt: skip
        stack.enter_context(contextlib.closing(writer))
        batches = stack.enter_context(contextlib.closing(feed.own_batches(config, train_split)))
        asked_to_stop = asked_to_stop or stack.enter_context(interruption.watched())

        # ---- Run ----
        steps_per_epoch = train_split.num_examples / config.data.batch_size
        run = Run(
            config, mesh, steps_per_epoch, checkpointer, writer, train_split, test_split, batches,
            asked_to_stop,
        )  # fmt: skip
        with sharding.ended_with_its_peers():  # Closing would wait for them.
            run_phases(run, found)
            checkpointer.wait()


def run_phases(run: Run, found: Meta | None) -> None:
    """Begins, or goes on from the checkpoint that `found` describes, and trains to the end."""
    config = run.config
    phases = config_lib.phases_to_run(config)
    if found is None:
        begun = phases[0]
        state = start.start_phase(config, begun, run.steps_per_epoch, None, run.mesh)
        start.report_network(config, state)
    else:
        begun = found.phase
        start.report_going_on(run.checkpointer.directory.parent, found, config)
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
        if start.is_before(phase, begun):
            continue
        if phase != begun:
            state = start.start_phase(config, phase, run.steps_per_epoch, state, run.mesh)
        state = run_phase(run, phase, state)


def run_phase(run: Run, phase: str, state: TrainState) -> TrainState:
    """Trains to the end of the phase; evaluates and saves on the way and at the end."""
    config, plan = run.config, Plan.of(run.config, phase, run.steps_per_epoch)
    first = int(state.phase_step)
    offset = int(state.step) - first
    if first:
        evaluate_late(run, phase, state, plan)
    if first >= plan.num_steps:
        print(f"Phase {phase} is finished.")
        return state
    train_step = _train_step(config_lib.to_json(config), phase, run.steps_per_epoch, run.mesh)
    progress = PhaseProgress(
        run.writer, phase, first=first, num_steps=plan.num_steps,
        every_steps=config.log.every_steps, batch_size=config.data.batch_size,
        measure=network.task(config_lib.architecture(config)).trained,
    )  # fmt: skip

    with progress:
        for n in range(first + 1, plan.num_steps + 1):
            # ---- Step: dispatched, not waited for; nothing moves between host and device ----
            batch = sharding.global_batch(next(run.batches), run.mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch)
                progress.add(offset + n, n, metrics)
            stop = run.asked_to_stop(offset + n)
            if not (plan.evaluates(n) or plan.saves(n) or stop):
                continue

            # ---- Evaluate, save ----
            progress.pause()
            state = averaged(run, phase, state)
            meta = Meta(
                offset + n, phase, n, plan.num_steps, run.steps_per_epoch, config,
                class_names=run.train_split.class_names,
            )  # fmt: skip
            if plan.evaluates(n) and not stop:  # Whoever asked to stop may not wait for it.
                summary = measured_or_saved(run, phase, state, meta)
                meta = dataclasses.replace(meta, top1_percent=mean_over_scales(summary))
                report(run, phase, offset + n, summary, is_last=n == plan.num_steps)
            if plan.saves(n) or stop:
                run.checkpointer.save(state, meta)
            if stop:
                run.checkpointer.wait()
                raise Stopped(
                    f"{stop}: stopped after step {offset + n} and saved; the same command goes on.",
                    interruption.EXIT_CODES[stop],
                )
            progress.resume()
    return state


def evaluate_late(run: Run, phase: str, state: TrainState, plan: Plan) -> None:
    """Makes the evaluation that a run left out which was stopped, or failed, at this very step.

    Its checkpoint is given the score that it would have been saved with. One that only the stop
    made is given none: `--step=best` chooses from the same checkpoints as without the stop, but
    that it takes one of the `checkpoint.keep` places until later ones push it out.
    """
    n, step = int(state.phase_step), int(state.step)
    # What one host reads decides for all, which must evaluate together: its file may be stale.
    lines = sharding.decided_by_main(run.writer.held("eval", step))
    if not plan.evaluates(n) or lines >= len(scales_of(run.config, phase)):
        return
    summary = measure(run, phase, averaged(run, phase, state))
    if plan.saves(n):
        run.checkpointer.add_score(step, mean_over_scales(summary))
    # Last: with these lines it is made.
    report(run, phase, step, summary, is_last=n >= plan.num_steps)


def averaged(run: Run, phase: str, state: TrainState) -> TrainState:
    """The state, its averaged network ready to be evaluated; as it is without one."""
    return averaging.with_own_statistics(
        state, run.config, phase, run.steps_per_epoch, run.train_split, run.mesh
    )


def measured_or_saved(run: Run, phase: str, state: TrainState, meta: Meta) -> pd.DataFrame:
    """`measure`; where it fails, by a damaged image say, what was trained is saved before.

    Of several processes, which save together, one may fail alone: then nothing is saved.
    """
    try:
        return measure(run, phase, state)
    except Exception:
        if jax.process_count() == 1:
            try:
                run.checkpointer.save(state, meta)
                run.checkpointer.wait()
                say(f"The evaluation failed. Step {meta.step} is saved: the same command goes on.")
            except UserError as error:  # What made the evaluation fail is said too.
                say(str(error))
        raise


def measure(run: Run, phase: str, state: TrainState) -> pd.DataFrame:
    """Evaluates on the test split; a row per S, see `evaluation.summarize`."""
    config = run.config
    evaluated = evaluation.evaluate(
        _eval_step(config_lib.to_json(config), PHASES[phase].own_gates, run.mesh),
        *state.eval_variables, run.test_split, config,
        scales_of(config, phase), config.eval.batch_size, progress=False, mesh=run.mesh,
    )  # fmt: skip
    return evaluation.summarize(evaluated)


def scales_of(config: Config, phase: str) -> tuple[float, ...]:
    """The S that a phase is evaluated at; a network that does not heed S is evaluated once."""
    return config.eval.scales if config_lib.heeds_scale(config, phase) else (1.0,)


def mean_over_scales(summary: pd.DataFrame) -> float:
    """What is measured, top-1 say, in percent: the mean over the scales."""
    return float(np.mean(summary[measure_of(summary.columns).column]))


def report(run: Run, phase: str, step: int, summary: pd.DataFrame, *, is_last: bool) -> None:
    """Writes a line per S; shows a table where `is_last`, else one line."""
    rows = summary.to_dict("records")
    for row in rows:
        run.writer.write("eval", step, {"phase": phase, **row})
    if is_last:
        arch = config_lib.architecture(run.config)
        title = f"After phase {phase}, step {step}, test split"
        table.print_table(summary, title, getattr(arch, "gate_noun", "blocks"))
        heeds = arch.gated and config_lib.heeds_scale(run.config, phase)
        if heeds:
            least = least_share(config_lib.evaluated(run.config))
            mind = table.strays(summary, run.config.scale.of, least=least)
            print(f"{mind}\n" if mind else "", end="")
        return
    usage = "flops_share" if run.config.scale.of == "flops" else "usage_mean"
    measure = measure_of(summary.columns)
    shown = ", ".join(
        f"{row[measure.column]:.2f} at S {row['scale']:g} (usage {row[usage]:.2f})" for row in rows
    )
    say(f"{phase} step {step}: {measure.title} {shown}")


# Compiled once for all runs of a process with the same config; it is JSON, for a Config can change.


@functools.lru_cache(maxsize=4)
def _train_step(config: str, phase: str, steps_per_epoch: float, mesh: Mesh) -> TrainStep:
    step = make_train_step(config_lib.from_json(config), phase, steps_per_epoch, mesh)
    return telling(step, f"the training step of phase {phase}")


@functools.lru_cache(maxsize=4)
def _eval_step(config: str, own_gates: bool, mesh: Mesh) -> EvalStep:
    """The evaluation of all phases that agree on `own_gates`."""
    phase = next(name for name, phase in PHASES.items() if phase.own_gates == own_gates)
    return telling(make_eval_step(config_lib.from_json(config), phase, mesh=mesh), "the evaluation")
