"""The commands: flags in, one call of the library, one sentence for an input that is wrong.

JAX is imported only after the input is found right, so that a mistake shows at once.
"""

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from urnet_jax import config as config_lib
from urnet_jax.architecture import EXECUTIONS
from urnet_jax.config import Config
from urnet_jax.errors import UserError, told_to_the_user
from urnet_jax.fields import PHASES

FLAGS = flags.FLAGS
DEFAULT_CONFIG = "configs/digits.py"

_told_to_the_user = told_to_the_user(
    "Interrupted: the same command goes on from the last checkpoint."
)


def run_train() -> None:
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


def run_evaluate() -> None:
    """Evaluate a trained network over a grid of scales S.

        python evaluate.py --workdir=DIR [--scales=0.2,0.6,1.0] [--split=test]

    --workdir     the folder of a run by train.py
    --step        newest (default), best (by the mean top-1 of its evaluation) or a step's number
    --scales      each from 0 to 1, separated by commas (default: the run's eval.scales)
    --split       test (default) or train
    --batch_size  images at a time (default: the run's eval.batch_size)
    --execution   how blocks that gates skip are left out: cond, compact, pieces or auto (default:
                  what is fastest here); dense computes and masks them, the same to rounding
    --data_dir    where the data lies now (default: the run's data.dir)
    --output      the folder for tables and plots (default: the workdir)
    --report      also writes report.html: tables, plots and images, in one file for a browser
    """
    app.run(_evaluate, flags_parser=_parse_evaluate)


def run_aot() -> None:
    """Compile a run's steps for a TPU slice that is not here, and print what they take.

        python -m urnet_jax.aot --config=configs/imagenet_resnet101.py --topology=v5e:16x16

    --config      a config, and --config.X its fields, as for train.py
    --topology    a generation and its shape, as v5e:4x4, v6e:16x16, v5p:4x4x4 or v4:2x2x4
    --num_slices  of that topology, joined by the data-centre network (default: 1)
    --phase       whose training step: pretrain, gates or joint (default: joint)
    --fit         find the largest batch that fits, and take that (some compilations more)

    It needs no TPU, only the extra tpu. Memory, FLOPs and collectives are those of one device.
    """
    app.run(_aot, flags_parser=_parse_aot)


def run_export() -> None:
    """Write a run's network as a PyTorch state dict.

        python -m urnet_jax.pretrained --workdir=DIR --output=FILE

    --workdir  the folder of a run by train.py
    --output   the file: .safetensors, or .pt, .pth or .th, which need the extra torch
    --step     newest (default), best (by the mean top-1 of its evaluation) or a step's number

    Gates are written too, as layer1.0.gate.fc1.weight and so on. --config.init.from=FILE takes the
    file back.
    """
    app.run(_export, flags_parser=_parse_export)


@_told_to_the_user
def _parse_train(argv: list[str]) -> tuple[Config, str]:
    _help(argv, run_train)
    argv = _define_config(argv)
    flags.DEFINE_string("workdir", "", "The folder of the run.")
    flags.DEFINE_boolean("distributed", False, "Joins the other processes of the run.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "Of the run.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Of this process, from 0.", lower_bound=0)
    _parse(argv)
    config_lib.validate(FLAGS.config)
    _check_workdir()
    by_hand = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if any(value not in ("", None) for value in by_hand) and not FLAGS.distributed:
        raise UserError("--coordinator, --num_processes and --process_id need --distributed.")
    return FLAGS.config, FLAGS.workdir


@_told_to_the_user
def _train(parsed: tuple[Config, str]) -> None:
    from urnet_jax import sharding, training

    config, workdir = parsed
    if FLAGS.distributed:
        sharding.start_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    training.train_and_evaluate(config, workdir)


@_told_to_the_user
def _parse_aot(argv: list[str]) -> Config:
    _help(argv, run_aot)
    argv = _define_config(argv)
    flags.DEFINE_string("topology", "", "A TPU slice.")
    flags.DEFINE_integer("num_slices", 1, "Of that topology.", lower_bound=1)
    flags.DEFINE_enum("phase", "joint", PHASES, "Whose training step.")
    flags.DEFINE_boolean("fit", False, "Find the largest batch that fits.")
    _parse(argv)
    config_lib.validate(FLAGS.config)
    if not FLAGS.topology:
        raise UserError("--topology is missing; name a TPU slice, as --topology=v5e:4x4.")
    return FLAGS.config


@_told_to_the_user
def _aot(config: Config) -> None:
    from urnet_jax import aot, compiled

    compiled.without_tpu()
    aot.report(
        config, FLAGS.topology, num_slices=FLAGS.num_slices, phase=FLAGS.phase, fit=FLAGS.fit
    )


@_told_to_the_user
def _parse_evaluate(argv: list[str]) -> tuple[float, ...] | None:
    _help(argv, run_evaluate)
    flags.DEFINE_string("workdir", "", "The folder of a run by train.py.")
    flags.DEFINE_string("step", "newest", "Which checkpoint.")
    flags.DEFINE_string("scales", None, "Scales S, separated by commas.")
    flags.DEFINE_enum("split", "test", ["test", "train"], "The split to evaluate on.")
    flags.DEFINE_integer("batch_size", 0, "Images at a time; 0: the run's.", lower_bound=0)
    flags.DEFINE_enum("execution", "auto", EXECUTIONS, "How gated blocks are run.")
    flags.DEFINE_string("data_dir", "", "Where the data lies now.")
    flags.DEFINE_string("output", "", "The folder for tables and plots.")
    flags.DEFINE_boolean("report", False, "Also writes report.html.")
    _parse(argv)
    _check_workdir()
    _which_step()
    return None if FLAGS.scales is None else _scales(FLAGS.scales)


@_told_to_the_user
def _evaluate(scales: tuple[float, ...] | None) -> None:
    from urnet_jax import report

    report.evaluate_workdir(
        FLAGS.workdir,
        which=_which_step(),
        scales=scales,
        split=FLAGS.split,
        batch_size=FLAGS.batch_size,
        execution=FLAGS.execution,
        data_dir=FLAGS.data_dir,
        output=FLAGS.output,
        report=FLAGS.report,
    )


@_told_to_the_user
def _parse_export(argv: list[str]) -> None:
    _help(argv, run_export)
    flags.DEFINE_string("workdir", "", "The folder of a run by train.py.")
    flags.DEFINE_string("output", "", "The file.")
    flags.DEFINE_string("step", "newest", "Which checkpoint.")
    _parse(argv)
    _check_workdir()
    _which_step()
    if not FLAGS.output:
        raise UserError("--output is missing; name a file, as --output=mine.safetensors.")


@_told_to_the_user
def _export(_: None) -> None:
    from urnet_jax import pretrained

    pretrained.export_workdir(FLAGS.workdir, FLAGS.output, _which_step())


def _which_step() -> Any:
    if FLAGS.step in ("newest", "best"):
        return FLAGS.step
    if not FLAGS.step.isdecimal():
        raise UserError(f"--step is {FLAGS.step!r}; expected newest, best or a step's number.")
    return int(FLAGS.step)


def _check_workdir() -> None:
    if not FLAGS.workdir:
        raise UserError("--workdir is missing; name the run's folder, as --workdir=runs/mine.")
    if os.path.isfile(FLAGS.workdir):
        raise UserError(f"--workdir is {FLAGS.workdir!r}, a file; name a folder.")


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(map(float, text.split(",")))
    except ValueError:
        scales = ()
    if not scales or not all(0 <= scale <= 1 for scale in scales):
        raise UserError(
            f"--scales is {text!r}; expected numbers from 0 to 1 separated by commas, as 0.2,0.6."
        )
    return scales


def _help(argv: list[str], command: object) -> None:
    # Absl's own --help lists flags of the main module only, which here has none, and exits with 1.
    if {"--help", "-help", "-h", "-?", "--helpshort"} & set(argv):
        print(inspect.getdoc(command))
        sys.exit(0)


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config, and the arguments without it."""
    own = flags.FlagValues()
    name = flags.DEFINE_string("config", DEFAULT_CONFIG, "A config.", flag_values=own)
    own.set_gnu_getopt(True)
    with _flag_errors():
        rest = own(argv, known_only=True)
    return name.value or "", rest


def _define_config(argv: list[str]) -> list[str]:
    """Defines --config and --config.X; the arguments without --config."""
    name, argv = _take_config(argv)
    config = config_lib.load(name)
    for argument in argv:
        if override := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            config_lib.field(override[1])
    # ml_collections reads names as Python does, to which `from` is a keyword.
    argv = [re.sub(r"^(--?(?:no)?config\.init)\.from(?==|$)", r'\1["from"]', a) for a in argv]
    config_flags.DEFINE_config_dict("config", config, "The config.", sys_argv=argv)
    return argv


def _parse(argv: list[str]) -> None:
    with _flag_errors():
        rest = FLAGS(argv)
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; write every option as --name=value.")
    if FLAGS["verbosity"].using_default_value:
        FLAGS.verbosity = logging.WARNING  # Orbax and others log every step of theirs at INFO


@contextlib.contextmanager
def _flag_errors() -> Iterator[None]:
    try:
        yield
    except flags.IllegalFlagValueError as error:
        illegal = re.match(r"flag --([\w.]+)=(.*?): (.*)", str(error), re.DOTALL)
        if not illegal:
            raise UserError(f"{error}.") from error
        name, value, reason = illegal.groups()
        if name.startswith("config."):
            raise config_lib.not_allowed(name.removeprefix("config."), value) from error
        # Where absl has no words for what it expects, its reason says it: "value should be ...".
        expected = FLAGS[name].parser.syntactic_help
        wanted = f"expected {expected}" if expected else reason
        raise UserError(f"--{name} is {value!r}; {wanted}.") from error
    except flags.Error as error:
        raise UserError(str(error)) from error
