"""Checkpoints: the training state, the input's position and the config. The only user of Orbax."""

import dataclasses
from typing import Any

import grain.python as grain
import orbax.checkpoint as ocp
from etils import epath

from urnet_jax import config as config_lib
from urnet_jax import state as state_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.state import TrainState, Tree

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
      step: training steps taken over all phases.
      phase: the phase that the state belongs to.
      phase_step: steps taken in it.
      phase_steps: steps that the phase has in all.
      steps_per_epoch: training steps of one epoch.
      config: the run's config.
    """

    step: int
    phase: str
    phase_step: int
    phase_steps: int
    steps_per_epoch: float
    config: Config

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"config": config_lib.to_json(self.config)}


class Checkpointer:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: epath.PathLike, *, keep: int | None = None) -> None:
        """Opens `workdir` (which need not exist yet) and keeps the `keep` newest checkpoints."""
        self.directory = epath.Path(workdir).resolve() / FOLDER
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=keep is not None, enable_async_checkpointing=False
            ),
            item_handlers={  # pyright: ignore[reportArgumentType]
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
                "data": grain.PyGrainCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Any, meta: Meta) -> None:
        """Writes a checkpoint; it counts only once it is complete. A step is saved once."""
        if meta.step in self._manager.all_steps():
            return
        self._manager.save(
            meta.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain.PyGrainCheckpointSave(data),
                meta=ocp.args.JsonSave(meta.to_json()),
            ),
        )

    def restore_meta(self, step: int) -> Meta:
        """What the checkpoint at `step` says of itself."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        saved = self._restore(step, args).meta
        try:
            return Meta(**{**saved, "config": config_lib.from_json(saved["config"])})
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(step, error) from error

    def restore_state(self, step: int, abstract: TrainState) -> TrainState:
        """The training state at `step`, in the shapes of `abstract`."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # pyright: ignore[reportCallIssue]
        return self._restore(step, args).state

    def restore_data(self, step: int, data: Any) -> None:
        """Puts the input iterator `data` back to where it was at `step`."""
        args = ocp.args.Composite(data=grain.PyGrainCheckpointRestore(data))
        self._restore(step, args)

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a bad file.
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> UserError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return UserError(
            f"The checkpoint {self.directory / str(step)} cannot be read ({reason}); move that "
            "folder away to go on from the one before it, or start in a new workdir."
        )


def check_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Refuses a workdir whose run has another network or data than `config`.

    Raises:
      UserError: the newest checkpoint is of another architecture or dataset.
    """
    found = newest_meta(workdir)
    if found is None:
        return
    asked, held = config_lib.architecture(config), config_lib.architecture(found.config)
    where = f"The workdir {workdir} holds a checkpoint of a"
    advice = "choose another --workdir, or ask for the network that it holds."
    if asked != held:
        raise UserError(
            f"{where} {held.describe()}, and the config asks for a {asked.describe()}: {advice}"
        )
    if config.data.name != found.config.data.name:
        raise UserError(
            f"{where} network for {found.config.data.name}, and the config asks for "
            f"{config.data.name}: {advice}"
        )


def check_init_from(config: Config, phase: str) -> None:
    """Refuses an `init_from` whose network does not fit the config's.

    The other run may be plain where this one is gated: its gates then begin anew.

    Raises:
      UserError: the folder holds no checkpoint, or one of another architecture.
    """
    source = config[phase].init_from
    if not source:
        return
    meta = newest_meta(source)
    if meta is None:
        raise UserError(
            f"{phase}.init_from is {source}, which holds no checkpoint; name the workdir of a run."
        )
    asked, held = config_lib.architecture(config), config_lib.architecture(meta.config)
    fits = dataclasses.replace(held, gated=asked.gated, gate_reduction=asked.gate_reduction)
    same_gates = not (asked.gated and held.gated) or asked.gate_reduction == held.gate_reduction
    if fits != asked or not same_gates:
        raise UserError(
            f"{phase}.init_from is {source}, which holds a {held.describe()}, and the config asks "
            f"for a {asked.describe()}: name a run of the same network."
        )


def newest_meta(workdir: epath.PathLike) -> Meta | None:
    """What the newest checkpoint of `workdir` says of itself, None where there is none."""
    if not (epath.Path(workdir).resolve() / FOLDER).exists():
        return None
    checkpointer = Checkpointer(workdir)
    try:
        step = checkpointer.latest_step()
        return None if step is None else checkpointer.restore_meta(step)
    finally:
        checkpointer.close()


def load_for_evaluation(workdir: epath.PathLike) -> tuple[Meta, Tree, Tree]:
    """The newest checkpoint's network: its meta, parameters (averaged, if so) and batch_stats.

    Raises:
      UserError: `workdir` holds no checkpoint, or a damaged one.
    """
    meta = newest_meta(workdir)
    if meta is None:
        raise UserError(
            f"The workdir {workdir} holds no checkpoint; train there first: "
            f"python train.py --workdir={workdir}."
        )
    checkpointer = Checkpointer(workdir)
    try:
        abstract = state_lib.abstract_state(meta.config, meta.phase, meta.steps_per_epoch)
        state = checkpointer.restore_state(meta.step, abstract)
    finally:
        checkpointer.close()
    return meta, state.eval_params, state.batch_stats
