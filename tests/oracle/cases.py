"""The cases in which our model is compared with the peers: a pairwise covering set.

Every width meets every size, and every two values of different columns meet in some case. The
three odd widths are one value, in turn: timm does not have them (it rounds channels
otherwise), and they are compared under the rules of Hugging Face only. The full product is
measured by `parity_table.py`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from reference_weights import LABELS

WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
ODD_WIDTHS = (0.33, 0.6, 1.9)
SIZES = ((256, 256), (192, 320), (224, 224), (288, 288), (257, 193))
STRIDES = (32, 16, 8)
PEERS = ("huggingface", "timm")
TASKS = ("classification", "segmentation")

RULES = {
    "huggingface": {"dilation_rule": "huggingface", "odd_size_rule": "drop"},
    "timm": {"dilation_rule": "cvnets", "odd_size_rule": "resize"},
}
"""Our switches that reproduce each peer; timm follows the original release (cvnets)."""

SEGMENTATION = {"aspp_out_channels": 64, "atrous_rates": (2, 6, 12)}
"""A narrow head; its third rate exceeds small feature maps."""


class Case(NamedTuple):
    """One comparison; `peer` says whose rules hold.

    timm has no segmentation: there the reference is Hugging Face's head on timm's features.
    """

    width: float
    size: tuple[int, int]
    stride: int
    peer: str
    task: str

    @property
    def name(self) -> str:
        """Returns, for instance, `0.5-224x224-16-timm-classification`."""
        return "-".join(
            (
                f"{self.width}-{self.size[0]}x{self.size[1]}",
                f"{self.stride}-{self.peer}-{self.task}",
            )
        )

    @property
    def fields(self) -> dict:
        """Returns the fields of the configs, both ours and Hugging Face's."""
        head = SEGMENTATION if self.task == "segmentation" else {}
        return {
            "width_multiplier": self.width,
            "output_stride": self.stride,
            "num_labels": LABELS,
            **head,
        }


# fmt: off
CASES = (
    Case(0.5, (256, 256), 32, "timm", "classification"),
    Case(0.5, (192, 320), 16, "timm", "classification"),
    Case(0.5, (224, 224), 32, "timm", "segmentation"),
    Case(0.5, (288, 288), 32, "timm", "classification"),
    Case(0.5, (257, 193), 8, "huggingface", "classification"),
    Case(0.75, (256, 256), 32, "timm", "classification"),
    Case(0.75, (192, 320), 16, "huggingface", "segmentation"),
    Case(0.75, (224, 224), 32, "timm", "classification"),
    Case(0.75, (288, 288), 8, "timm", "classification"),
    Case(0.75, (257, 193), 16, "timm", "classification"),
    Case(1.0, (256, 256), 32, "huggingface", "classification"),
    Case(1.0, (192, 320), 16, "huggingface", "classification"),
    Case(1.0, (224, 224), 32, "timm", "classification"),
    Case(1.0, (288, 288), 8, "timm", "classification"),
    Case(1.0, (257, 193), 32, "timm", "segmentation"),
    Case(1.25, (256, 256), 32, "huggingface", "classification"),
    Case(1.25, (192, 320), 16, "huggingface", "classification"),
    Case(1.25, (224, 224), 32, "timm", "classification"),
    Case(1.25, (288, 288), 8, "timm", "segmentation"),
    Case(1.25, (257, 193), 32, "timm", "classification"),
    Case(1.5, (256, 256), 32, "timm", "classification"),
    Case(1.5, (192, 320), 32, "huggingface", "classification"),
    Case(1.5, (224, 224), 16, "huggingface", "classification"),
    Case(1.5, (288, 288), 8, "timm", "classification"),
    Case(1.5, (257, 193), 32, "timm", "segmentation"),
    Case(1.75, (256, 256), 16, "huggingface", "segmentation"),
    Case(1.75, (192, 320), 32, "huggingface", "classification"),
    Case(1.75, (224, 224), 8, "timm", "classification"),
    Case(1.75, (288, 288), 32, "huggingface", "classification"),
    Case(1.75, (257, 193), 32, "huggingface", "classification"),
    Case(2.0, (256, 256), 8, "huggingface", "classification"),
    Case(2.0, (192, 320), 32, "timm", "segmentation"),
    Case(2.0, (224, 224), 32, "huggingface", "classification"),
    Case(2.0, (288, 288), 16, "timm", "classification"),
    Case(2.0, (257, 193), 32, "huggingface", "classification"),
    Case(0.33, (256, 256), 32, "huggingface", "classification"),
    Case(0.6, (192, 320), 8, "huggingface", "classification"),
    Case(1.9, (224, 224), 32, "huggingface", "segmentation"),
    Case(0.33, (288, 288), 16, "huggingface", "classification"),
    Case(0.6, (257, 193), 32, "huggingface", "classification"),
)
# fmt: on

DOUBLE = (CASES[4], CASES[2], CASES[36], CASES[6])
"""The cases that are also run in float64."""

GOLDEN = (
    Case(0.5, (256, 256), 16, "huggingface", "segmentation"),
    Case(0.5, (224, 224), 32, "timm", "classification"),
    Case(0.5, (257, 193), 32, "timm", "classification"),
)
"""The cases whose reference outputs are stored, for the tests that run without torch."""


def full_product() -> list[Case]:
    """Returns every combination that has a reference."""
    return [
        Case(width, size, stride, peer, task)
        for peer, task in itertools.product(PEERS, TASKS)
        for width in sorted(WIDTHS + (ODD_WIDTHS if peer == "huggingface" else ()))
        for size, stride in itertools.product(SIZES, STRIDES)
    ]


def uncovered() -> set[tuple]:
    """Returns the pairs of values of the full product that no case of `CASES` has."""

    def pairs(case: Case) -> set[tuple]:
        values = case._replace(width="odd" if case.width in ODD_WIDTHS else case.width)  # type: ignore[arg-type]
        return set(itertools.combinations(zip(Case._fields, values, strict=True), 2))

    wanted: set[tuple] = set().union(*map(pairs, full_product()))
    return wanted.difference(*map(pairs, CASES))
