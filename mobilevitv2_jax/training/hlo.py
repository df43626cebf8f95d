"""What the text of a compiled program says of its collectives, and of the bytes it moves."""

from __future__ import annotations

import math
import re
from collections import Counter

_COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$", re.MULTILINE)
# Those that give other names to what is there, or await what another instruction has started.
_IDLE = re.compile(r"parameter|constant|tuple|get-tuple-element|bitcast|.*-done")


def collectives(text: str) -> tuple[tuple[str, int, int], ...]:
    """Returns kind, number and bytes of the results of the collectives.

    One that is started and awaited in two instructions counts where it is awaited.
    """
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for match in re.finditer(rf"= (\(.*?\)|\S+) ({_COLLECTIVES})(?:-done)?\(", text):
        numbers[match[2]] += 1
        sizes[match[2]] += sum(size for size, _ in _arrays(match[1]))
    return tuple((kind, numbers[kind], sizes[kind]) for kind in sorted(numbers))


def kernel_traffic(text: str) -> tuple[int, int]:
    """Returns the bytes that the entry computation's kernels read and write.

    Returns:
        Operands and results of every fusion and every custom call; and of all instructions, what
        does not lie in the chip's own, faster memory: the traffic of its main memory.
    """
    # Computations are apart by an empty line, and the entry is one of them.
    _, _, entry = text.partition("\nENTRY ")
    passed = memory = 0
    types: dict[str, str] = {}
    for name, result, kind, rest in _INSTRUCTION.findall(entry.partition("\n}")[0]):
        types[name] = result
        if _IDLE.fullmatch(kind):
            continue
        operands = re.findall(r"%[\w.-]+", rest.partition("), ")[0])
        arrays = [x for operand in operands for x in _arrays(types.get(operand, ""))]
        if kind in ("copy-start", "slice-start"):  # the result is what is copied, and its copy
            (one, one_near), (other, other_near), *_ = _arrays(result)
            memory += min(one, other) * ((not one_near) + (not other_near))
            continue
        arrays += _arrays(result)
        memory += sum(size for size, near in arrays if not near)
        if kind in ("fusion", "custom-call"):
            passed += sum(size for size, _ in arrays)
    return passed, memory


def _arrays(text: str) -> list[tuple[int, bool]]:
    """Returns bytes, and whether it lies in the chip's own memory, of each array of a type."""
    found = re.findall(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\](\{[^}]*\})?", text)
    return [
        (
            (int(bits) // 8 if bits else 1) * math.prod(map(int, filter(None, sides.split(",")))),
            "S(1)" in layout,
        )
        for bits, sides, layout in found
    ]
