"""`urnet serve`."""

import os
import pathlib

from absl import app, flags

from urnet_jax.cli.flags import FLAGS, batch_sizes_of, check_workdir, parse, show_help, which_step
from urnet_jax.errors import UserError, told_to_the_user

_told_to_the_user = told_to_the_user("Interrupted before it was ready.")


def main() -> None:
    """Serve a trained network over HTTP: under load it turns S down, and answers all in time.

        urnet serve --workdir=DIR [--port=8000] [--deadline_ms=100]

    --workdir       the folder of a run by train.py, or a bundle by `urnet export --format=bundle`;
                    calibrated on this device by `urnet calibrate`
    --step          of a run, newest (default), best or a step's number
    --name          of the model in addresses (default: that of the folder)
    --host          the address that is listened at (default: 127.0.0.1, this machine alone)
    --port          default: 8000; 0 takes any that is free
    --deadline_ms   within which a request is answered that names no time itself (default: 100)
    --most_waiting  images that may wait (default: 1024)
    --batch_sizes   for which the network is compiled (default: 1,2,4,8,16,32)
    --body_limit    bytes of a request (default: enough for the largest batch as JSON)
    --held_mb       mebibytes of all requests that wait (default: 1024)
    --token_file    a file with a token, which requests then have to carry in a header,
                    Authorization: Bearer TOKEN (default: the environment's URNET_TOKEN, if any)
    --ray           serve by replicas behind Ray Serve, on the Ray that runs or on one of its own
    --replicas      how many (default: 1); SIGHUP has each take the newest checkpoint

    Requests are of the Open Inference Protocol, version 2; docs/serving.md has examples. SIGTERM
    and Ctrl-C end it once all that it took is answered.
    """
    app.run(_serve, flags_parser=_parse)


@_told_to_the_user
def _parse(argv: list[str]) -> str:
    show_help(argv, main)
    flags.DEFINE_string("workdir", "", "The folder of a run, or a bundle.")
    flags.DEFINE_string("step", "newest", "Which checkpoint.")
    flags.DEFINE_string("name", "", "Of the model.")
    flags.DEFINE_string("host", "127.0.0.1", "The address that is listened at.")
    flags.DEFINE_integer("port", 8000, "The port.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_float("deadline_ms", 100.0, "Of a request that names none.", lower_bound=0.001)
    flags.DEFINE_integer("most_waiting", 1024, "Images that may wait.", lower_bound=1)
    flags.DEFINE_string("batch_sizes", "1,2,4,8,16,32", "For which the network is compiled.")
    flags.DEFINE_integer("body_limit", 0, "Bytes of a request.", lower_bound=0)
    flags.DEFINE_integer("held_mb", 1024, "Mebibytes of what waits.", lower_bound=1)
    flags.DEFINE_string("token_file", "", "A file with a token.")
    flags.DEFINE_bool("ray", False, "By replicas behind Ray Serve.")
    flags.DEFINE_integer("replicas", 1, "How many.", lower_bound=1)
    parse(argv)
    check_workdir()
    which_step()
    if FLAGS.replicas > 1 and not FLAGS.ray:
        raise UserError(f"--replicas is {FLAGS.replicas}; more than one needs --ray.")
    if not batch_sizes_of(FLAGS.batch_sizes):
        raise UserError("--batch_sizes is 'none'; expected numbers from 1 up, as 1,8.")
    return _token()


def _token() -> str:
    """That of the file or the environment; never of the command line, which others can read."""
    if not FLAGS.token_file:
        return os.environ.get("URNET_TOKEN", "")
    try:
        token = pathlib.Path(FLAGS.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token_file {FLAGS.token_file} cannot be read ({error}).") from error
    if not token:
        raise UserError(f"--token_file {FLAGS.token_file} is empty; expected a token.")
    return token


@_told_to_the_user
def _serve(token: str) -> None:
    extra = "ray" if FLAGS.ray else "serve"
    try:
        from urnet_jax.serve.web import options, server

        if FLAGS.ray:
            from urnet_jax.serve import cluster_run
    except ModuleNotFoundError as error:
        raise UserError(
            f"The server needs {error.name}, which is not installed: install the extra with "
            f"`pip install '.[{extra}]'`."
        ) from error
    from urnet_jax.xla import cache

    told = options.Options(
        FLAGS.workdir,
        which=which_step(),
        name=FLAGS.name,
        deadline_ms=FLAGS.deadline_ms,
        most_waiting=FLAGS.most_waiting,
        batch_sizes=tuple(batch_sizes_of(FLAGS.batch_sizes)),
        body_limit=FLAGS.body_limit,
        held_mb=FLAGS.held_mb,
        token=token,
    )
    if FLAGS.ray:
        cluster_run.run(told, host=FLAGS.host, port=FLAGS.port, replicas=FLAGS.replicas)
        return
    cache.keep_compiled()
    server.serve(told, host=FLAGS.host, port=FLAGS.port)
