"""`python -m urnet_jax COMMAND`, installed as `urnet COMMAND`."""

import importlib
import sys

COMMANDS = {
    "train": "train a network, or go on with a run",
    "evaluate": "evaluate a run over a grid of scales S: tables, plots, a page",
    "calibrate": "make S the share of FLOPs that a run's network uses",
    "serve": "answer over HTTP, turning S down under load",
    "prepare": "make a dataset of a folder of images and label maps",
    "export": "write a run's network as a PyTorch state dict, or as a bundle",
    "aot": "compile a run's steps for a TPU slice that is not here",
}


def main() -> None:
    """Runs the command that the first argument names."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-help", "-h", "help"):
        print(_usage())
        return
    if name not in COMMANDS:
        print(f"error: {name!r} is not a command.\n\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"urnet {name}", *rest]
    importlib.import_module(f"urnet_jax.cli.{name}").main()


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"    {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        f"urnet COMMAND [--flag=value ...]\n\n{rows}\n\n`urnet COMMAND --help` explains its flags."
    )


if __name__ == "__main__":
    main()
