"""Evaluates a run: the same as `mobilevitv2 eval`."""

import sys

from mobilevitv2_jax.cli.main import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
