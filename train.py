"""Train a network.

    python train.py --config=configs/digits.py --workdir=DIR [--config.any.field=value ...]

`python train.py --help` explains the flags.
"""

from urnet_jax.cli import train

if __name__ == "__main__":
    train.main()
