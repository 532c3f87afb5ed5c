"""`urnet evaluate` and evaluate.py."""

from absl import app, flags

from urnet_jax.cli.flags import FLAGS, check_workdir, parse, scales_of, show_help, which_step
from urnet_jax.cli.interruption import end_at_once_on_ctrl_c
from urnet_jax.errors import told_to_the_user
from urnet_jax.nets.mode import EXECUTIONS

_INTERRUPTED = (
    "Interrupted: no file is half written; the same command evaluates the run from the start."
)
_told_to_the_user = told_to_the_user(_INTERRUPTED)


def main() -> None:
    """Evaluate a trained network over a grid of scales S.

        python evaluate.py --workdir=DIR [--scales=0.2,0.6,1.0] [--split=test]

    --workdir     the folder of a run by train.py
    --step        newest (default), best (by its evaluation, over all S) or a step's number
    --scales      each from 0 to 1, separated by commas (default: the run's eval.scales)
    --split       test (default) or train
    --batch_size  images at a time (default: the run's eval.batch_size)
    --execution   how blocks that gates skip are left out: cond, compact, pieces, filters or auto
                  (default: what is fastest here); dense computes and masks them, the same to
                  rounding
    --data_dir    where the data lies now (default: the run's data.dir)
    --output      the folder for tables and plots (default: the workdir)
    --report      also writes report.html: tables, plots and images, in one file for a browser;
                  without it, an older report.html in that folder is removed
    --calibrated  uses what `urnet calibrate` found for the checkpoint, if it was run (default);
                  --calibrated=False evaluates the network as training left it
    --image_part  also says what gates gain by looking at the image: top-1 beside that of the same
                  network with one path for all images, at equal cost
    --static      folders, separated by commas, that hold evaluations of plain networks by this
                  command: they are drawn beside this one, and compared with it at their costs

    All devices of this host share the work; where there are several hosts, start it on one.
    """
    end_at_once_on_ctrl_c(_INTERRUPTED)
    app.run(_evaluate, flags_parser=_parse_evaluate)


@_told_to_the_user
def _parse_evaluate(argv: list[str]) -> tuple[float, ...] | None:
    show_help(argv, main)
    flags.DEFINE_string("workdir", "", "The folder of a run by train.py.")
    flags.DEFINE_string("step", "newest", "Which checkpoint.")
    flags.DEFINE_string("scales", None, "Scales S, separated by commas.")
    flags.DEFINE_enum("split", "test", ["test", "train"], "The split to evaluate on.")
    flags.DEFINE_integer("batch_size", 0, "Images at a time; 0: the run's.", lower_bound=0)
    flags.DEFINE_enum("execution", "auto", EXECUTIONS, "How gated blocks are run.")
    flags.DEFINE_string("data_dir", "", "Where the data lies now.")
    flags.DEFINE_string("output", "", "The folder for tables and plots.")
    flags.DEFINE_boolean("report", False, "Also writes report.html.")
    flags.DEFINE_boolean("calibrated", True, "Uses the checkpoint's calibration.")
    flags.DEFINE_boolean("image_part", False, "Also says what looking at the image gains.")
    flags.DEFINE_list("static", [], "Folders of evaluations of plain networks.")
    parse(argv)
    check_workdir()
    which_step()
    return None if FLAGS.scales is None else scales_of(FLAGS.scales)


@_told_to_the_user
def _evaluate(scales: tuple[float, ...] | None) -> None:
    from urnet_jax.evaluate import job
    from urnet_jax.xla import cache

    cache.keep_compiled()
    job.evaluate_workdir(
        FLAGS.workdir,
        which=which_step(),
        scales=scales,
        split=FLAGS.split,
        batch_size=FLAGS.batch_size,
        execution=FLAGS.execution,
        data_dir=FLAGS.data_dir,
        output=FLAGS.output,
        report=FLAGS.report,
        calibrated=FLAGS.calibrated,
        static=FLAGS.static,
        image_part=FLAGS.image_part,
    )
