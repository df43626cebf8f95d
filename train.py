"""Trains a model: the same as `mobilevitv2 train`."""

import sys

from mobilevitv2_jax.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
