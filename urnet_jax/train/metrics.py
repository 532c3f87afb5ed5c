"""Training metrics as sums that merge."""

import flax.struct
from clu import metrics


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the samples of one or many training steps.

    `top1` is the mean of `correct`, of maps the share of pixels that are right; `top1_whole` is of
    the pass with everything on; where a step has one pass, of that one.
    """

    loss: metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm]
    task_loss: metrics.Average.from_output("task_loss")  # pyright: ignore[reportInvalidTypeForm]
    scale_loss: metrics.Average.from_output("scale_loss")  # pyright: ignore[reportInvalidTypeForm]
    distill_loss: metrics.Average.from_output("distill_loss")  # pyright: ignore[reportInvalidTypeForm]
    aux_loss: metrics.Average.from_output("aux_loss")  # pyright: ignore[reportInvalidTypeForm]
    top1: metrics.Average.from_output("correct")  # pyright: ignore[reportInvalidTypeForm]
    top1_whole: metrics.Average.from_output("correct_whole")  # pyright: ignore[reportInvalidTypeForm]
    usage: metrics.Average.from_output("usage")  # pyright: ignore[reportInvalidTypeForm]
    scale: metrics.Average.from_output("scale")  # pyright: ignore[reportInvalidTypeForm]
    state_norm: metrics.Average.from_output("state_norm")  # pyright: ignore[reportInvalidTypeForm]
    gradient_norm: metrics.Average.from_output("gradient_norm")  # pyright: ignore[reportInvalidTypeForm]
