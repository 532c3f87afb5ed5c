"""Checkpoints: the training state, the input's position and the config. The only user of Orbax."""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import grain.python as grain
import jax
import orbax.checkpoint as ocp
from etils import epath

from urnet_jax import config as config_lib
from urnet_jax import state as state_lib
from urnet_jax.architecture import Architecture
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.optimizer import PHASES
from urnet_jax.state import TrainState, Tree

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"


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
        self.directory = _folder(workdir)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=keep is not None,
                cleanup_tmp_directories=keep is not None,
                enable_async_checkpointing=False,
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
        _write_checksums(self.directory / str(meta.step))

    def restore_meta(self, step: int) -> Meta:
        """What the checkpoint at `step` says of itself."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        saved = self._restore(step, args).meta
        try:
            meta = Meta(**{**saved, "config": config_lib.from_json(saved["config"])})
            config_lib.architecture(meta.config)
            if meta.phase not in PHASES:
                raise ValueError(f"its phase is {meta.phase!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(step, error) from error
        return meta

    def restore_state(self, step: int, abstract: TrainState) -> TrainState:
        """The training state at `step`, in the shapes of `abstract`."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # pyright: ignore[reportCallIssue]
        return self._restore(step, args).state

    def restore_data(self, step: int, data: Any) -> None:
        """Puts the input iterator `data` back to where it was at `step`."""
        args = ocp.args.Composite(data=grain.PyGrainCheckpointRestore(data))
        self._restore(step, args)

    def check_files(self, step: int) -> None:
        """Raises UserError if a file of the checkpoint is missing or is not as it was written."""
        folder = self.directory / str(step)
        try:
            # A kill between the last file and the checksums leaves a whole checkpoint without them.
            listed = (folder / CHECKSUMS).read_text() if (folder / CHECKSUMS).exists() else "{}"
            for name, expected in json.loads(listed).items():
                if not (folder / name).exists():
                    raise ValueError(f"{name} is missing")
                if zlib.crc32((folder / name).read_bytes()) != expected:
                    raise ValueError(f"{name} is not as it was written")
        except (OSError, ValueError) as error:
            raise self._damaged(step, error) from error

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


def _folder(workdir: epath.PathLike) -> epath.Path:
    # Orbax wants absolute paths, and gs://bucket/run is one already.
    path = epath.Path(workdir)
    return (path if "://" in str(workdir) else path.resolve()) / FOLDER


def _write_checksums(folder: epath.Path) -> None:
    """Records the checkpoint's files: Orbax itself reads a changed byte as if it were right."""
    sums = {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in _files(folder)}
    temporary = folder / f"{CHECKSUMS}.tmp"
    temporary.write_text(json.dumps(sums, indent=1))
    temporary.replace(folder / CHECKSUMS)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):  # epath has no recursive glob
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def check_workdir(workdir: epath.PathLike, config: Config) -> Meta | None:
    """What the newest checkpoint of `workdir` says, if there is one and `config` can go on from it.

    Raises:
      UserError: it is of another dataset, network, batch size or seed, or of another optimiser
        in the phase that it is in.
    """
    found = newest_meta(workdir)
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
    asked, held = config_lib.architecture(config), config_lib.architecture(found.config)
    if differing := _differences(asked, held):
        raise UserError(
            f"{where} {held.describe()}, and the config asks for another ({differing}): {advice}"
        )
    before, now = found.config[phase], config[phase]
    if before != now and _structure(config, found) != _structure(found.config, found):
        shaping = ("clip_norm", "gate_learning_rate_factor", "ema_decay")
        changed = [name for name in shaping if before[name] != now[name]]
        values = " and ".join(f"{phase}.{n} {before[n]}, not {now[n]}" for n in changed)
        raise UserError(f"{where} phase that began with {values}: {advice}")
    return found


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
    ignored = {"gated"} if asked.gated and held.gated else {"gated", "gate_reduction"}
    if differing := _differences(asked, held, ignored):
        raise UserError(
            f"{phase}.init_from is {source}, which holds a {held.describe()}, and the config asks "
            f"for another network ({differing}): name a run of the same network."
        )


def _differences(asked: Architecture, held: Architecture, ignored: Iterable[str] = ()) -> str:
    """For people: 'depth 14, not 8'; empty if they are the same."""
    names = [field.name for field in dataclasses.fields(held) if field.name not in ignored]
    pairs = [(name, getattr(asked, name), getattr(held, name)) for name in names]
    return ", ".join(f"{name} {new}, not {old}" for name, new, old in pairs if new != old)


def _structure(config: Config, meta: Meta) -> Any:
    """What the state of the phase that `meta` is in is made of."""
    return jax.tree.structure(state_lib.abstract_state(config, meta.phase, meta.steps_per_epoch))


def newest_meta(workdir: epath.PathLike) -> Meta | None:
    """What the newest checkpoint of `workdir` says of itself, None where there is none."""
    if not _folder(workdir).exists():
        return None
    checkpointer = Checkpointer(workdir)
    try:
        if (step := checkpointer.latest_step()) is None:
            return None
        checkpointer.check_files(step)
        return checkpointer.restore_meta(step)
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
