"""What the commands share: how flags are read, and how a wrong one is told.

JAX is imported only after the input is found right, so that a mistake shows at once.
"""

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError

FLAGS = flags.FLAGS
DEFAULT_CONFIG = "configs/digits.py"


def show_help(argv: list[str], command: object) -> None:
    """Prints the docstring of `command` and ends the process, if `argv` asks for help."""
    # Absl's own --help lists flags of the main module only, which here has none, and exits with 1.
    if {"--help", "-help", "-h", "-?", "--helpshort"} & set(argv):
        print(inspect.getdoc(command))
        sys.exit(0)


def define_config(argv: list[str]) -> list[str]:
    """Defines --config and --config.X; the arguments without --config."""
    name, argv = _take_config(argv)
    config = config_lib.load(name)
    known = config_lib.fields_of(config)
    for argument in argv:
        if override := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            if override[1] == "model.kind":
                raise UserError(
                    "model.kind is set in a config file, where the fields of its network stand "
                    "beside it: name that file with --config."
                )
            config_lib.field(override[1], known)
    # ml_collections reads names as Python does, to which `from` is a keyword.
    argv = [re.sub(r"^(--?(?:no)?config\.init)\.from(?==|$)", r'\1["from"]', a) for a in argv]
    config_flags.DEFINE_config_dict("config", config, "The config.", sys_argv=argv)
    return argv


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config, and the arguments without it."""
    own = flags.FlagValues()
    name = flags.DEFINE_string("config", DEFAULT_CONFIG, "A config.", flag_values=own)
    own.set_gnu_getopt(True)
    with _flag_errors():
        rest = own(argv, known_only=True)
    return name.value or "", rest


def parse(argv: list[str]) -> None:
    """Parses the flags that are defined; a UserError names one that is wrong."""
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
            known = config_lib.fields_of(FLAGS["config"].value)
            raise config_lib.not_allowed(name.removeprefix("config."), value, known) from error
        # Where absl has no words for what it expects, its reason says it: "value should be ...".
        expected = FLAGS[name].parser.syntactic_help
        wanted = f"expected {expected}" if expected else reason
        raise UserError(f"--{name} is {value!r}; {wanted}.") from error
    except flags.Error as error:
        raise UserError(str(error)) from error


def check_workdir() -> None:
    """Raises a UserError where --workdir is missing or is a file."""
    if not FLAGS.workdir:
        raise UserError("--workdir is missing; name the run's folder, as --workdir=runs/mine.")
    if os.path.isfile(FLAGS.workdir):
        raise UserError(f"--workdir is {FLAGS.workdir!r}, a file; name a folder.")


def which_step() -> Any:
    """The checkpoint that --step names: newest, best or a number; else a UserError."""
    if FLAGS.step in ("newest", "best"):
        return FLAGS.step
    if not FLAGS.step.isdecimal():
        raise UserError(f"--step is {FLAGS.step!r}; expected newest, best or a step's number.")
    return int(FLAGS.step)


def scales_of(text: str) -> tuple[float, ...]:
    """The numbers of --scales; a UserError if one is not from 0 to 1."""
    try:
        scales = tuple(map(float, text.split(",")))
    except ValueError:
        scales = ()
    if not scales or not all(0 <= scale <= 1 for scale in scales):
        raise UserError(
            f"--scales is {text!r}; expected numbers from 0 to 1 separated by commas, as 0.2,0.6."
        )
    return scales


def batch_sizes_of(text: str) -> tuple[int, ...]:
    """The numbers of --batch_sizes, ascending; none for `none`; a UserError if one is not one."""
    if text == "none":
        return ()
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(
            f"--batch_sizes is {text!r}; expected numbers from 1 up separated by commas, as 1,8."
        )
    return tuple(sorted(set(map(int, parts))))
