"""`urnet aot`."""

from absl import app, flags

from urnet_jax import config as config_lib
from urnet_jax.cli.flags import FLAGS, define_config, parse, show_help
from urnet_jax.cli.interruption import end_at_once_on_ctrl_c
from urnet_jax.config import Config
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.phases import PHASES

_INTERRUPTED = "Interrupted."
_told_to_the_user = told_to_the_user(_INTERRUPTED)


def main() -> None:
    """Compile a run's steps for a TPU slice that is not here, and print what they take.

        python -m urnet_jax aot --config=configs/imagenet_resnet101.py --topology=v5e:16x16

    --config      a config, and --config.X its fields, as for train.py
    --topology    a generation and its shape, as v5e:4x4, v6e:16x16, v5p:4x4x4 or v4:2x2x4
    --num_slices  of that topology, joined by the data-centre network (default: 1)
    --phase       whose training step: pretrain, gates or joint (default: joint)
    --fit         find the largest batch that fits, and take that (some compilations more)

    It needs no TPU, only the extra tpu. Memory, FLOPs and collectives are those of one device.
    """
    end_at_once_on_ctrl_c(_INTERRUPTED)
    app.run(_aot, flags_parser=_parse_aot)


@_told_to_the_user
def _parse_aot(argv: list[str]) -> Config:
    show_help(argv, main)
    argv = define_config(argv)
    flags.DEFINE_string("topology", "", "A TPU slice.")
    flags.DEFINE_integer("num_slices", 1, "Of that topology.", lower_bound=1)
    flags.DEFINE_enum("phase", "joint", PHASES, "Whose training step.")
    flags.DEFINE_boolean("fit", False, "Find the largest batch that fits.")
    parse(argv)
    config_lib.validate(FLAGS.config)
    if not FLAGS.topology:
        raise UserError("--topology is missing; name a TPU slice, as --topology=v5e:4x4.")
    return FLAGS.config


@_told_to_the_user
def _aot(config: Config) -> None:
    from urnet_jax.train import aot_report
    from urnet_jax.xla import compiled

    compiled.without_tpu()
    aot_report.report(
        config, FLAGS.topology, num_slices=FLAGS.num_slices, phase=FLAGS.phase, fit=FLAGS.fit
    )
