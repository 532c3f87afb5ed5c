"""`urnet calibrate`."""

from absl import app, flags

from urnet_jax.cli.flags import (
    FLAGS,
    batch_sizes_of,
    check_workdir,
    parse,
    scales_of,
    show_help,
    which_step,
)
from urnet_jax.cli.interruption import end_at_once_on_ctrl_c
from urnet_jax.errors import told_to_the_user

_INTERRUPTED = "Interrupted: the checkpoint is as it was; the same command calibrates it anew."
_told_to_the_user = told_to_the_user(_INTERRUPTED)


def main() -> None:
    """Make S the share of FLOPs that a run's network uses, and measure what each S takes.

        urnet calibrate --workdir=DIR [--images=2000] [--scales=0.2,0.6,1.0]

    --workdir   the folder of a run by train.py
    --step      newest (default), best (by its evaluation, over all S) or a step's number
    --scales    each from 0 to 1, separated by commas; 1 is always added (default: to 1 by 0.05,
                from what the network uses at least, and eval.scales); between two, what was found
                is interpolated
    --images    training images to calibrate on; as many others say how well it went (default: 2000)
    --data_dir  where the data lies now (default: the run's data.dir)
    --batch_sizes  whose times are measured here, for budgets in milliseconds and for the server
                (default: 1,2,4,8,16,32); none measures no times

    The results are kept with the checkpoint; evaluation, `urnet_jax.load` and `urnet serve` use
    them. Weights are not touched, and the test split is not looked at.
    """
    end_at_once_on_ctrl_c(_INTERRUPTED)
    app.run(_calibrate, flags_parser=_parse)


@_told_to_the_user
def _parse(argv: list[str]) -> tuple[float, ...] | None:
    show_help(argv, main)
    flags.DEFINE_string("workdir", "", "The folder of a run by train.py.")
    flags.DEFINE_string("step", "newest", "Which checkpoint.")
    flags.DEFINE_string("scales", None, "Scales S, separated by commas.")
    flags.DEFINE_integer("images", 2000, "Training images to calibrate on.", lower_bound=1)
    flags.DEFINE_string("data_dir", "", "Where the data lies now.")
    flags.DEFINE_string("batch_sizes", "1,2,4,8,16,32", "Whose times are measured.")
    parse(argv)
    check_workdir()
    which_step()
    batch_sizes_of(FLAGS.batch_sizes)
    return None if FLAGS.scales is None else scales_of(FLAGS.scales)


@_told_to_the_user
def _calibrate(scales: tuple[float, ...] | None) -> None:
    from urnet_jax.evaluate import calibration
    from urnet_jax.xla import cache

    cache.keep_compiled()
    calibration.calibrate_workdir(
        FLAGS.workdir,
        which=which_step(),
        scales=scales,
        images=FLAGS.images,
        data_dir=FLAGS.data_dir,
    )
    if sizes := batch_sizes_of(FLAGS.batch_sizes):
        from urnet_jax.serve import profiling

        print()
        profiling.profile_workdir(
            FLAGS.workdir, which=which_step(), images=FLAGS.images, batch_sizes=sizes,
            data_dir=FLAGS.data_dir,
        )  # fmt: skip
