"""The training step of a TPU pod, compiled without the pod: what it needs, and how fast it can be.

The compiler is that of the pod itself (libtpu). What it says of memory, collectives and arithmetic
is what would run there; times are its counts over the chip's published peaks, not measurements.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
import ml_collections
from jax.experimental import topologies

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.config import nearest
from mobilevitv2_jax.training import hlo
from mobilevitv2_jax.training.experiment import Experiment, open_source, prepare
from mobilevitv2_jax.training.memory import format_bytes, program_bytes
from mobilevitv2_jax.training.mesh import mesh_of, peak_tflops
from mobilevitv2_jax.training.out_of_memory import OutOfMemory
from mobilevitv2_jax.training.program import lower_train_step
from mobilevitv2_jax.training.report import aligned
from mobilevitv2_jax.training.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip; its arithmetic stands in `mesh.py`.

    Attributes:
        memory: bytes of high-bandwidth memory (HBM).
        memory_speed: bytes per second to and from it.
        link_speed: bytes per second that the chip can send to others in its pod, all links
            together.
    """

    memory: int
    memory_speed: float
    link_speed: float


# Sources: the tables "Key chip specifications" of cloud.google.com/tpu/docs/v5e, …/v5p and …/v6e,
# read in November 2026. Links: 1600, 4800 and 3584 Gbit/s in each direction.
CHIPS = {
    "v5e": Chip(16 * 2**30, 819e9, 200e9),
    "v5p": Chip(95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(32 * 2**30, 1640e9, 448e9),
}


def parse_topology(text: str) -> tuple[str, int]:
    """Returns the kind of chip and the number of chips of a topology such as "v5e:16x16".

    Raises:
        ConfigError: if it is not one.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", text)
    if not match:
        raise ConfigError(f"--topology must be CHIP:ROWSxCOLUMNS such as 'v5e:16x16', got {text!r}")
    if match[1] not in CHIPS:
        raise ConfigError(
            f"--topology must name one of {', '.join(CHIPS)}, got {match[1]!r}"
            f"{nearest(match[1], CHIPS)}"
        )
    return match[1], math.prod(map(int, match[2].split("x")))


def find_devices(topology: str) -> list[jax.Device]:
    """Returns the chips of a topology, which can be compiled for and not be run on.

    Raises:
        ConfigError: without libtpu, or for a topology that it does not know.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "mobilevitv2 compile needs libtpu, the compiler for TPU: "
            "pip install 'mobilevitv2-jax[tpu-compile]'"
        )
    # There is no TPU here to ask about, and libtpu warns at length of what it cannot find out.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it locks a device it does not use
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology={topology} does not exist: {error}") from None
    return list(found.devices)


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of a training step.

    Attributes:
        chips: number of chips.
        images: images per part of a step and chip.
        arguments: bytes per chip of state and batch.
        temporaries: bytes per chip that live during the step.
        program: bytes per chip of the program itself.
        flops: arithmetic operations per step and chip.
        traffic: bytes per step and chip that operations read and write, as the compiler counts
            them: some of it may stay in the chip's own, faster memory.
        collectives: (kind, number, bytes of the results) of each kind.
        passed: bytes per step and chip of operands and results of its fusions and custom calls.
        memory_traffic: bytes per step and chip from and to the memory that is not the chip's own.
        grouped: number of grouped convolutions: what depthwise ones are, unless they are shifts.
        parts: that a batch is taken in, one after the other in a loop. Compilers count a loop
            once: arithmetic, traffic and collectives are then those of a part and of the update.
    """

    chips: int
    images: float
    arguments: int
    temporaries: int
    program: int
    flops: float
    traffic: float
    collectives: tuple[tuple[str, int, int], ...]
    passed: int = 0
    memory_traffic: int = 0
    grouped: int = 0
    parts: int = 1

    @property
    def memory(self) -> int:
        """Bytes per chip."""
        return self.arguments + self.temporaries + self.program

    @property
    def sent(self) -> float:
        """Bytes that each chip must at least send: those of a ring."""
        share = (self.chips - 1) / self.chips
        # An all-reduce scatters the sums and gathers them.
        return sum(
            share * size * (2 if kind == "all-reduce" else 1) for kind, _, size in self.collectives
        )


def analyze(compiled: jax.stages.Compiled, experiment: Experiment) -> Report:
    """Returns the report on a compiled training step."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    if memory is None or cost is None or text is None:
        raise RuntimeError("the compiler tells nothing of its program")
    lasting, passing = program_bytes(memory)
    parts = experiment.config.optimizer.accumulation_steps
    passed, memory_traffic = hlo.kernel_traffic(text)
    return Report(
        chips=experiment.mesh.size,
        images=experiment.config.data.batch_size / experiment.mesh.size / parts,
        arguments=lasting,
        temporaries=passing,
        program=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        traffic=cost["bytes accessed"],
        collectives=hlo.collectives(text),
        passed=passed,
        memory_traffic=memory_traffic,
        grouped=len(re.findall(r" convolution\(.*?(?:feature|batch)_group_count=", text)),
        parts=parts,
    )


def bounds(report: Report, chip: Chip, peak: float) -> dict[str, float]:
    """Returns the least seconds of a step by what may hold it up.

    Args:
        report: the compiled step.
        chip: the chip.
        peak: its arithmetic, in operations per second.
    """
    return {
        "arithmetic": report.flops / peak,
        "memory traffic": report.traffic / chip.memory_speed,
        "links": report.sent / chip.link_speed,
    }


def render(report: Report, chip: Chip, peak: float) -> str:
    """Returns the report as text."""
    found = bounds(report, chip, peak)
    slowest = max(found, key=lambda name: found[name])
    rate = report.images * report.chips / found[slowest]
    rows = {
        "memory per chip": f"{format_bytes(report.memory)} of {format_bytes(chip.memory)}",
        "  state and batch": format_bytes(report.arguments),
        "  temporaries": format_bytes(report.temporaries),
        "  program": format_bytes(report.program),
        "arithmetic per image": f"{report.flops / report.images / 1e9:.3g} GFLOP",
        "traffic per image": format_bytes(report.traffic / report.images),
        "  of fusions and custom calls": format_bytes(report.passed / report.images),
        "  with main memory": format_bytes(report.memory_traffic / report.images),
    }
    for kind, number, size in report.collectives:
        rows[kind] = f"{number}, results of {format_bytes(size)} together"
    for name, seconds in found.items():
        rows[f"bound by {name}"] = f"{seconds * 1e3:.3g} ms"
    rows["grouped convolutions"] = str(report.grouped or "none: depthwise ones are shifts")
    what = "a step" if report.parts == 1 else f"one of {report.parts} parts, with the update,"
    rows[f"{what} takes at least"] = f"{found[slowest] * 1e3:.3g} ms, by {slowest}"
    if report.parts == 1:
        rows["and so at most"] = f"{rate:,.0f} images/s on {report.chips} chips"
    return aligned(rows) + "\n"


def compile_step(config: ml_collections.ConfigDict, topology: str) -> tuple[Report, str]:
    """Compiles the training step of an experiment for a pod.

    Returns:
        The report, and its text.

    Raises:
        ConfigError: if topology and config do not go together, or libtpu is missing.
        DeviceMemoryError: if the program does not fit a chip.
    """
    kind, count = parse_topology(topology)
    if config.mesh.devices not in (0, count):
        raise ConfigError(
            f"config.mesh.devices must be 0 or {count}, the chips of {topology}, "
            f"got {config.mesh.devices}"
        )
    chip, devices = CHIPS[kind], find_devices(topology)
    experiment = prepare(config, mesh_of(devices, config.mesh.fsdp))
    schedule = Schedule.from_config(config, len(open_source(config, config.data.train_split)))
    with OutOfMemory(experiment, limit=chip.memory) as out_of_memory:
        compiled = out_of_memory.compiled = lower_train_step(experiment, schedule).compile()
        report = analyze(compiled, experiment)
        if report.memory > chip.memory:  # the compiler has its own limit, which may be another
            raise jax.errors.JaxRuntimeError(
                f"RESOURCE_EXHAUSTED: the program takes {format_bytes(report.memory)}, and "
                f"a chip of {kind} has {format_bytes(chip.memory)}"
            )
    peak = (peak_tflops(experiment.mesh) or math.nan) * 1e12 / len(devices)
    return report, render(report, chip, peak)
