"""Where metrics go: JSON lines, and TensorBoard with the extra; the only user of tensorboardX."""

import collections
import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from urnet_jax.errors import UserError, writable

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends one JSON object per call to `workdir/metrics.jsonl`."""

    def __init__(
        self, workdir: epath.PathLike, *, resume_step: int = 0, tensorboard: bool = False,
        silent: bool = False,
    ) -> None:  # fmt: skip
        """Opens the file and drops what an interrupted run wrote after `resume_step`.

        Args:
          workdir: the run's folder.
          resume_step: that the run goes on from.
          tensorboard: writes TensorBoard events too.
          silent: writes nothing, as all processes of a run but one do.

        Raises:
          UserError: `tensorboard` is asked for and tensorboardX is not installed; or the file
            system does not take the file.
        """
        self._file = self._events = None
        before = [line for line in read(workdir) if line["step"] <= resume_step]
        self._held = collections.Counter((line.get("kind"), line["step"]) for line in before)
        if silent:
            return
        self._events = _open_tensorboard(workdir, resume_step) if tensorboard else None
        self._path = path = epath.Path(workdir) / FILE
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= resume_step]
        temporary = path.with_name(f"{FILE}.tmp")
        with writable(path):
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(path)
            self._file = path.open("a")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes `values` (numbers and strings) of a `kind` (train, eval) at a step.

        JSON knows no NaN, which the loss of a diverged network is: such a number becomes null.

        Raises:
          UserError: the file system does not take it.
        """
        if self._file is None:
            return
        values = {name: _finite_or_none(value) for name, value in values.items()}
        with writable(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        if self._events is None:
            return
        suffix = f"_at_{values['scale']:g}" if kind == "eval" else ""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}{suffix}", value, step)
        self._events.flush()

    def held(self, kind: str, step: int) -> int:
        """How many lines of this kind and step the file held when it was opened."""
        return self._held[kind, step]

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # What a full disk left in the buffer.
                self._file.close()
        if self._events is not None:
            self._events.close()


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """What was written to `workdir/metrics.jsonl`, whole lines only; empty without the file."""
    path = epath.Path(workdir) / FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) < math.inf]


def check_tensorboard() -> None:
    """Raises UserError where TensorBoard's writer is not installed."""
    try:
        import tensorboardX  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            "log.tensorboard needs the tensorboard extra, which is not installed: "
            "pip install 'urnet-jax[tensorboard]', or set --config.log.tensorboard=False."
        ) from error


def _open_tensorboard(workdir: epath.PathLike, resume_step: int) -> Any:
    check_tensorboard()
    import tensorboardX  # noqa: PLC0415

    folder = epath.Path(workdir) / "tensorboard"
    return tensorboardX.SummaryWriter(str(folder), purge_step=resume_step + 1)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # A line that a kill cut short.
        return math.inf
