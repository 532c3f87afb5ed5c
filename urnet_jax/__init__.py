"""User-resizable residual networks in JAX: one set of weights, compute chosen per request."""

from typing import TYPE_CHECKING, Any, Literal

from urnet_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from urnet_jax.serve.predictor import Predictor


def load(
    path: Any, which: Literal["newest", "best"] | int = "newest", *, keep_compiled: bool = False,
    **options: Any,
) -> "Predictor":  # fmt: skip
    """A trained network to be called: `load("runs/mine")(images, scale=0.5).classes`.

    Args:
      path: the workdir of a run, or a bundle by `urnet export --format=bundle`.
      which: of a workdir, the newest checkpoint, the best, or that of a step.
      keep_compiled: has JAX keep what it compiles, for this whole process, so that the next start
        is fast, see `xla.cache`.
      **options: of `serve.predictor.Predictor`: `batch_sizes`, `execution`, `devices`.

    Raises:
      UserError: the path holds no network, it is damaged, or chance decides which blocks it runs.
    """
    from urnet_jax.serve import predictor

    return predictor.load(path, which, keep_compiled=keep_compiled, **options)
