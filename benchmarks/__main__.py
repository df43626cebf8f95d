"""Speed, beside the peers where they are installed: one command, one table for each part.

    python -m benchmarks cpu layers compile     forward and training step; layers; compile times
    python -m benchmarks tpu                    the training step, compiled for TPU without one
    python -m benchmarks gpu                    where there is one
    python -m benchmarks attention              time and memory against the number of tokens
    python -m benchmarks input                  images per CPU-second of the input pipeline

What is compared takes turns, so that whatever else the machine does meets all of it; the ratio of
a round is that of neighbours in time. Tables give medians with the smallest and largest value.
"""

from __future__ import annotations

import argparse
import importlib
import os

from mobilevitv2_jax.cli.allocator import keep_freed_memory

PARTS = {
    "cpu": "benchmarks.cpu",
    "layers": "benchmarks.layers",
    "compile": "benchmarks.compilation",
    "tpu": "benchmarks.tpu",
    "gpu": "benchmarks.gpu",
    "attention": "benchmarks.attention",
    "input": "benchmarks.input_pipeline",
}
"""By name, the module whose `run(options)` yields its tables, each when it is done."""


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=7, help="turns that everything takes")
    parser.add_argument(
        "--batch", type=int, help="images of a batch (default: 16 on a CPU, 256 and 512 on a GPU)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of an image")
    parser.add_argument("--torch-compile", action="store_true", help="timm compiled, too: minutes")
    parser.add_argument("--plot", help="where `attention` saves its picture")
    options = parser.parse_args()
    if "gpu" not in options.parts:
        os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()
    # JAX would take most of a GPU's memory for itself, and timm shares it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for part in options.parts:
        for text in importlib.import_module(PARTS[part]).run(options):
            print(text, flush=True)


if __name__ == "__main__":
    main()
