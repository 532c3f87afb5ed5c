"""Checkpoints: the training state, and what it says of itself.

Orbax is used here, and in `retention`; nowhere else.
"""

import contextlib
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from urnet_jax.errors import MissingCode, UserError, writable
from urnet_jax.runs import checksums
from urnet_jax.runs.meta import FOLDER, Meta, Score
from urnet_jax.runs.retention import kept_steps, newest_and_best
from urnet_jax.xla import sharding

_META = "meta/metadata"

State = TypeVar("State")
"""A pytree of arrays, whose parts have names: nested dicts, dataclasses, named tuples."""


class Checkpointer:
    """Writes and restores the checkpoints of one workdir; all processes of a run do so together."""

    def __init__(self, workdir: epath.PathLike, *, keep: int = 0, keep_best: int = 0) -> None:
        """Opens `workdir`, which need not exist yet where checkpoints are to be written.

        Args:
          workdir: the run's folder.
          keep: the newest checkpoints to keep; 0 opens the workdir for reading only.
          keep_best: also kept, of those that were evaluated, by `Meta.score`.
        """
        self.directory = _folder(workdir)
        self._scores = scores(workdir)
        self._keep, self._keep_best = keep, keep_best
        self._saving: int | None = None
        writes = keep > 0
        sealed = ocp.AsyncOptions(post_finalization_callback=self._seal)
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=writes,
                cleanup_tmp_directories=writes,
                preservation_policy=newest_and_best(keep, keep_best, self._scores),
                enable_async_checkpointing=writes,
                async_options=sealed if writes else None,
            ),
            item_handlers={  # pyright: ignore[reportArgumentType]
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, state: Any, meta: Meta) -> None:
        """Begins to write a checkpoint, and returns once `state` may be changed.

        It counts only once it is complete. A step is saved once.

        Raises:
          UserError: this checkpoint or the one before it cannot be written.
        """
        if meta.step in self._scores:
            return
        self.wait()
        self._saving, self._scores[meta.step] = meta.step, meta.score
        with self._writing():
            self._manager.save(
                meta.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    meta=ocp.args.JsonSave(meta.to_json()),  # pyright: ignore[reportCallIssue]
                ),
            )

    def wait(self) -> None:
        """Returns once all is written; a UserError if that is not possible."""
        with self._writing():
            self._manager.wait_until_finished()

    def add_score(self, step: int, top1_percent: float) -> None:
        """Gives the checkpoint at `step` the score of an evaluation that came after it was saved.

        It is on disk at the return, and the checkpoints that are left are those that would be left
        had it been saved with this score. All processes of a run call this together.

        Args:
          step: of a complete checkpoint.
          top1_percent: as in `Meta`.

        Raises:
          UserError: there is no such checkpoint, or its files cannot be written.
        """
        self.wait()
        folder = self.directory / str(step)
        meta = read_meta(self.directory.parent, step)
        meta = dataclasses.replace(meta, top1_percent=top1_percent)
        with sharding.failing_together():
            if sharding.is_main():
                with writable(folder / _META):
                    checksums.replace_file(folder, _META, json.dumps(meta.to_json()))
        self._scores[step] = meta.score
        there = sorted(self._manager.all_steps())
        stay = kept_steps(self._keep, self._keep_best, {n: self._scores.get(n) for n in there})
        for other in sharding.listed_by_main([n for n in there if n not in stay]):
            self._manager.delete(other)  # Together: it waits for the others.

    def restore_state(self, step: int, abstract: State) -> State:
        """The state at `step`, in the shapes and shardings of `abstract`.

        Raises:
          UserError: it is damaged, or of another shape.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # pyright: ignore[reportCallIssue]
        try:
            restored: Any = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a bad file.
            raise damaged(self.directory / str(step), error) from error
        return restored.state

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    def _seal(self) -> None:
        """Writes the checksums of a checkpoint when all else is written, before it counts."""
        if sharding.is_main():
            # Where it is renamed once it is complete; a bucket has it in its place from the start.
            temporary = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
            try:
                checksums.write(next(iter(temporary), self.directory / str(self._saving)))
            except OSError as error:  # The other processes wait, and what was saved is whole.
                print(f"warning: step {self._saving} has no checksums: {error}.", file=sys.stderr)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore wrap what the file system says.
            said = str(error).strip() or type(error).__name__
            known = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES))
            reason = next((text for text in known if text in said), said.splitlines()[-1][:300])
            raise UserError(
                f"The checkpoint of step {self._saving} cannot be written to {self.directory} "
                f"({reason}): make room or mend it; the same command then goes on from the "
                "checkpoint before."
            ) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Whoever asks must ask at every step, and only once: `interruption` does."""
        del step
        return False


def _folder(workdir: epath.PathLike) -> epath.Path:
    # Orbax wants absolute paths, and gs://bucket/run is one already.
    path = epath.Path(workdir)
    return (path if "://" in str(workdir) else path.resolve()) / FOLDER


def steps(workdir: epath.PathLike) -> list[int]:
    """The steps of the complete checkpoints of `workdir`, ascending."""
    return sorted(ocp.utils.checkpoint_steps(_folder(workdir)))


def read_meta(workdir: epath.PathLike, step: int) -> Meta:
    """What the checkpoint at `step` says of itself.

    Raises:
      UserError: it cannot be read.
    """
    folder = _folder(workdir) / str(step)
    try:
        return Meta.from_json(json.loads((folder / _META).read_text()))
    except MissingCode:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise damaged(folder, error) from error


def scores(workdir: epath.PathLike) -> dict[int, Score | None]:
    """The scores of the complete checkpoints by their steps; None where there was no evaluation."""
    found: dict[int, Score | None] = {}
    for step in steps(workdir):
        try:
            found[step] = read_meta(workdir, step).score
        except UserError:  # Whoever asks for this checkpoint will hear of it.
            found[step] = None
    return found


def check_files(workdir: epath.PathLike, step: int) -> None:
    """Raises UserError if a file of the checkpoint is missing or is not as it was written."""
    folder = _folder(workdir) / str(step)
    try:
        checksums.check(folder)
    except (AttributeError, OSError, ValueError) as error:
        raise damaged(folder, error) from error


def damaged(folder: epath.Path, error: Exception) -> UserError:
    """The error that a checkpoint cannot be read, and why."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"The checkpoint {folder} cannot be read ({reason}); move that folder away to go on from "
        "the one before it, or start in a new workdir."
    )


def find_whole(workdir: epath.PathLike) -> tuple[Meta | None, dict[int, UserError]]:
    """What the newest whole checkpoint says, and by step why those after it are damaged.

    Returns:
      None and nothing where there are no checkpoints.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """
    errors: dict[int, UserError] = {}
    for step in reversed(steps(workdir)):
        try:
            check_files(workdir, step)
            return read_meta(workdir, step), errors
        except MissingCode:
            raise
        except UserError as error:
            errors[step] = error
    if errors:
        reason = str(next(iter(errors.values()))).split("; move that folder")[0]
        raise UserError(
            f"Every checkpoint of the workdir {workdir} is damaged: {reason}; bring one back from "
            "a copy, or start in a new workdir."
        )
    return None, {}


def remove_leftovers(workdir: epath.PathLike, newest: int) -> None:
    """Removes what is left of checkpoints before `newest` whose removal was killed midway."""
    for step in steps(workdir):
        folder = _folder(workdir) / str(step)
        if step < newest and not (folder / checksums.ORBAX_METADATA).exists():
            folder.rmtree(missing_ok=True)


def newest_meta(workdir: epath.PathLike) -> Meta | None:
    """`find_whole`'s first; a damaged one is passed over, with a sentence on stderr."""
    meta, damaged_ones = find_whole(workdir)
    for error in damaged_ones.values():
        print(f"warning: {error}", file=sys.stderr)
    return meta


def restore_part(workdir: epath.PathLike, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Some parts of the state at `step`, by their names in it; the others are not read.

    Args:
      workdir: of the run.
      step: of a complete checkpoint.
      abstract: the parts' shapes, dtypes and shardings.

    Raises:
      UserError: the checkpoint is damaged, or a part is missing or of another shape.
    """
    folder = _folder(workdir) / str(step)
    args = ocp.args.PyTreeRestore(
        item=abstract,  # pyright: ignore[reportCallIssue]
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),  # pyright: ignore[reportCallIssue]
        partial_restore=True,  # pyright: ignore[reportCallIssue]
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            parts = reader.restore(folder / "state", args=args)
        for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
            if not isinstance(leaf, jax.Array):  # What Orbax does not find stays abstract.
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ValueError(f"it holds no {name}")
    except Exception as error:  # Orbax and TensorStore raise many kinds for a bad file.
        raise damaged(folder, error) from error
    return parts
