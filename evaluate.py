"""Evaluate a trained network over a grid of scales S: a table, CSV, JSON and plots.

    python evaluate.py --workdir=DIR [--scales=0.2,0.6,1.0] [--split=test]

`python evaluate.py --help` explains the flags.
"""

from urnet_jax.cli import evaluate

if __name__ == "__main__":
    evaluate.main()
