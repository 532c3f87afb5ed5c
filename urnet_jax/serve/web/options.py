"""What a server is told, however its process comes about; and the application made of it."""

import dataclasses
import re
from typing import Literal

from etils import epath

from urnet_jax.errors import UserError
from urnet_jax.serve.engine import Engine
from urnet_jax.serve.predictor import BATCH_SIZES, Predictor, load
from urnet_jax.serve.schedule.policy import Policy
from urnet_jax.serve.web.app import App
from urnet_jax.serve.web.http import Settings
from urnet_jax.serve.web.metrics import Metrics

TOKEN = "URNET_TOKEN"
"""The environment variable that may hold a token."""

NUMBER_BYTES = 24
"""Of a number as JSON, at most: what a body may hold for each of the numbers of a full batch."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a server of one network.

    Attributes:
      path: the workdir of a run, or a bundle; calibrated, and measured on the device that serves.
      which: of a workdir, its checkpoint.
      name: of the model in addresses; by default that of the folder.
      deadline_ms: of requests that name none.
      most_waiting: images that may wait.
      batch_sizes: for which the network is compiled.
      body_limit: bytes of a request's body; 0: enough for a full batch as JSON.
      held_mb: mebibytes of the bodies of all requests that wait.
      token: that requests have to carry; empty: none.
    """

    path: str
    which: Literal["newest", "best"] | int = "newest"
    name: str = ""
    deadline_ms: float = 100.0
    most_waiting: int = 1024
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    body_limit: int = 0
    held_mb: int = 1024
    token: str = ""

    @property
    def model(self) -> str:
        """The model's name.

        Raises:
          UserError: no address could hold it.
        """
        name = self.name or re.sub(r"[^\w.-]", "_", epath.Path(self.path).resolve().name)
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--name is {name!r}; expected letters, digits, '_', '-' and '.'.")
        return name

    def load(self) -> Predictor:
        """The network; nothing is compiled yet.

        Raises:
          UserError: there is none.
        """
        return load(self.path, self.which, batch_sizes=self.batch_sizes)


def application(
    options: Options, predictor: Predictor, policy: Policy | None = None, *, reloads: bool = True
) -> App:
    """Compiles the network and starts its engine, behind the routes that answer for it.

    Args:
      options: of the server.
      predictor: that `options.load` gave.
      policy: chooses S and batches; by default `schedule.policy.Bending`.
      reloads: whether a request may have it load the newest checkpoint.

    Raises:
      UserError: the network cannot be served here, see `Engine`.
    """
    metrics = Metrics()
    engine = Engine(
        predictor, policy=policy, most_rows=options.most_waiting, observe=metrics.observe
    )
    height, width, channels = predictor.image_shape
    numbers = predictor.batch_sizes[-1] * height * width * channels
    settings = Settings(
        name=options.model,
        deadline_ms=options.deadline_ms,
        body_limit=options.body_limit or max(1 << 20, NUMBER_BYTES * numbers),
        held_limit=options.held_mb << 20,
        token=options.token,
        reload=options.load if reloads else None,
    )
    return App(engine, metrics, settings)
