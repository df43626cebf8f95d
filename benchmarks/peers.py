"""Makes the peers importable."""

from __future__ import annotations

import sys

_KEPT = []


def repair_torchvision() -> None:
    """Makes torchvision, which timm imports, importable where it was built for another torch.

    Beside a torch for the CPU, the operators of a torchvision for CUDA do not load and its import
    fails at two of their names; nothing here uses them.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _KEPT.append(library)  # its operators live as long as it does
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    except ImportError:
        pass
