"""The command line with the small model of tiny.py in the place of the real one.

`python tests/small_cli.py train …`, with `--tiny` for the values of tiny.py.
"""

import sys

import pytest
from tiny import VALUES, use_small_model

from mobilevitv2_jax.cli.main import main

FLAGS = [f"--config.{key}={value}" for key, value in VALUES.items()]

if __name__ == "__main__":
    use_small_model(pytest.MonkeyPatch())
    arguments = [part for word in sys.argv[1:] for part in (FLAGS if word == "--tiny" else [word])]
    main(arguments)
