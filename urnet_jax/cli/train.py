"""`urnet train` and train.py."""

from absl import app, flags

from urnet_jax import config as config_lib
from urnet_jax.cli.flags import FLAGS, check_workdir, define_config, parse, show_help
from urnet_jax.config import Config
from urnet_jax.errors import UserError, told_to_the_user

_told_to_the_user = told_to_the_user(
    "Interrupted: the same command goes on from the last checkpoint."
)


def main() -> None:
    """Train a network.

        python train.py --config=configs/digits.py --workdir=DIR [--config.any.field=value ...]

    --config    a Python file with get_config(), or the name of a shipped one, as digits (default)
                or table1:urnet, one row of a file that has several
    --config.X  replaces the config's field X, as --config.joint.epochs=20 or
                --config.eval.scales=0.2,0.6,1.0
    --workdir   the folder of the run: its checkpoints, metrics and tables; a run that was
                interrupted goes on from there

    On several hosts start the same command on each, the workdir on a disk that all of them see, and

    --distributed  finds the others on Cloud TPU, under Slurm and Open MPI; elsewhere also
    --coordinator=HOST:PORT --num_processes=N --process_id=K  (K from 0; HOST is that of 0)

    Exit codes: 0 done; 2 an input or a disk is to be put right; 75 stopped by SIGTERM, 130 by
    Ctrl-C: saved, and the same command goes on; 76 another process of the run is gone.
    """
    app.run(_train, flags_parser=_parse_train)


@_told_to_the_user
def _parse_train(argv: list[str]) -> tuple[Config, str]:
    show_help(argv, main)
    argv = define_config(argv)
    flags.DEFINE_string("workdir", "", "The folder of the run.")
    flags.DEFINE_boolean("distributed", False, "Joins the other processes of the run.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "Of the run.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Of this process, from 0.", lower_bound=0)
    parse(argv)
    config_lib.validate(FLAGS.config)
    check_workdir()
    by_hand = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if any(value not in ("", None) for value in by_hand) and not FLAGS.distributed:
        raise UserError("--coordinator, --num_processes and --process_id need --distributed.")
    return FLAGS.config, FLAGS.workdir


@_told_to_the_user
def _train(parsed: tuple[Config, str]) -> None:
    from urnet_jax.train import loop
    from urnet_jax.xla import cache, sharding

    config, workdir = parsed
    cache.keep_compiled()
    if FLAGS.distributed:
        sharding.start_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    loop.train_and_evaluate(config, workdir)
