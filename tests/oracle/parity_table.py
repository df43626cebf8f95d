"""Measures our model against Hugging Face's and timm's, and prints the errors as a Markdown table.

    python tests/oracle/parity_table.py                    the covering set of the tests
    python tests/oracle/parity_table.py --full             every combination: an hour or more
    python tests/oracle/parity_table.py --double --only 0.5-

needs torch, transformers and timm (the `oracle` extra). Every finished case is a line of the
file of results; the same command again goes on behind the last one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys
import time

sys.path[:0] = map(str, pathlib.Path(__file__).parents[1:3])  # tests/, and benchmarks/ beside it

from oracle.cases import CASES, SIZES, STRIDES, Case, full_product  # noqa: E402


def measure(cases: list[Case], file: pathlib.Path, double: bool) -> dict[str, float]:
    """Returns the largest relative error of each case, measuring those not yet in the file."""
    from oracle.comparison import errors

    found = {}
    if file.exists():
        found = {line["case"]: line for line in map(json.loads, file.read_text().splitlines())}
    for number, case in enumerate(cases, start=1):
        if case.name in found:
            continue
        started = time.perf_counter()
        line = {"case": case.name, "errors": errors(case, double)}
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        found[case.name] = line
        seconds = time.perf_counter() - started
        largest = max(line["errors"].values())
        print(
            f"{number}/{len(cases)} {case.name}: {largest:.1e} in {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return {case.name: max(found[case.name]["errors"].values()) for case in cases}


def table(cases: list[Case], largest: dict[str, float], unit: float) -> str:
    """Returns a Markdown table for each peer and task, in a unit; "-" was not measured."""
    lines = []
    for peer, task in dict.fromkeys((case.peer, case.task) for case in cases):
        rows = sorted({case.width for case in cases if (case.peer, case.task) == (peer, task)})
        lines += [
            "",
            f"{task} under the rules of {peer}, output stride " + " / ".join(map(str, STRIDES)),
        ]
        lines += ["", "| width | " + " | ".join(f"{h}x{w}" for h, w in SIZES) + " |"]
        lines += ["|-" * (1 + len(SIZES)) + "|"]
        for width in rows:
            cells = []
            for size in SIZES:
                names = (Case(width, size, stride, peer, task).name for stride in STRIDES)
                values = [
                    f"{largest[name] / unit:.1f}" if name in largest else "-" for name in names
                ]
                cells.append(" / ".join(values))
            lines.append(f"| {width} | " + " | ".join(cells) + " |")
    return "\n".join(lines).strip()


def main() -> None:
    """Measures what the command line asks for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="every combination")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cases", nargs="*", help="these cases, by name")
    parser.add_argument("--double", action="store_true", help="float64 on both sides")
    parser.add_argument("--results", type=pathlib.Path, help="file of results (JSON lines)")
    options = parser.parse_args()

    if options.double:
        os.environ["JAX_ENABLE_X64"] = "1"  # read when jax is imported
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cases = full_product() if options.full or options.cases else list(CASES)
    if options.cases:
        unknown = set(options.cases) - {case.name for case in cases}
        if unknown:
            parser.error(f"no such cases: {', '.join(sorted(unknown))}")
        cases = [case for case in cases if case.name in options.cases]
    cases = [case for case in cases if options.only in case.name]
    name = "parity_float64.jsonl" if options.double else "parity_float32.jsonl"
    largest = measure(cases, options.results or pathlib.Path(name), options.double)

    import jax
    from oracle.comparison import timm
    from reference_torch import torch, transformers

    packages = {"torch": torch, "transformers": transformers, "timm": timm, "jax": jax}
    versions = ", ".join(f"{name} {module.__version__}" for name, module in packages.items())
    unit = 1e-15 if options.double else 1e-6
    print(table(cases, largest, unit))
    print(
        f"\nIn units of {unit:.0e}: {len(cases)} cases, largest {max(largest.values()):.1e}; "
        f"{datetime.date.today()}, {platform.machine()} CPU, {versions}"
    )


if __name__ == "__main__":
    main()
