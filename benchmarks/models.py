"""The two sides of a comparison: our forward pass and training step, and timm's.

A training step is forward, backward, clipping, AdamW and the moving average of the weights, with
label smoothing, in both. Ours takes uint8 images and guards against non-finite results besides.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mobilevitv2_jax as mv
from benchmarks.peers import repair_torchvision
from mobilevitv2_jax.config import load
from mobilevitv2_jax.models.functional import merge, split
from mobilevitv2_jax.training.experiment import Experiment, open_source, prepare
from mobilevitv2_jax.training.mesh import mesh_of
from mobilevitv2_jax.training.program import lower_train_step
from mobilevitv2_jax.training.schedule import Schedule

NAME, LABELS = "mobilevitv2_100", 1000

CPU_BATCH = 16
"""Images of a batch, where nothing else is said."""

Run = Callable[[], Any]
"""Does its work, and returns when it is done."""


def images(batch: int, size: int) -> np.ndarray:
    """Returns uint8 noise, channels last."""
    return np.random.RandomState(0).randint(0, 256, (batch, size, size, 3)).astype(np.uint8)


def labels(batch: int) -> np.ndarray:
    """Returns classes."""
    return np.random.RandomState(1).randint(0, LABELS, batch).astype(np.int32)


def experiment_config(batch: int, size: int, **model: Any) -> Any:
    """Returns the recipe of ImageNet without MixUp and CutMix, on generated images."""
    config = load("configs/imagenet.py").unlock()
    config.data.source = "synthetic"
    config.data.batch_size = config.eval.batch_size = batch
    config.data.image_size = config.model.image_size = size
    config.augment.mixup = config.augment.cutmix = 0.0
    config.model.update({"num_labels": LABELS, "batch_norm_group_size": None, **model})
    return config


def lowered_step(config: Any) -> tuple[Experiment, jax.stages.Lowered]:
    """Returns an experiment on the first device, and its training step before compilation."""
    experiment = prepare(config, mesh_of(jax.devices()[:1], 1))
    schedule = Schedule.from_config(config, len(open_source(config, config.data.train_split)))
    return experiment, lower_train_step(experiment, schedule)


def our_step(
    batch: int, size: int, *, times: int = 1, **model: Any
) -> tuple[Run, jax.stages.Compiled]:
    """Returns so many of our training steps, on one batch over and over, and their program."""
    experiment, lowered = lowered_step(experiment_config(batch, size, **model))
    compiled = lowered.compile()
    data = experiment.put({"image": images(batch, size), "label": labels(batch)})
    state, key = experiment.initial_state(), jax.random.key(0)

    def run() -> None:
        nonlocal state
        for _ in range(times):
            state, _ = compiled(state, data, key)
        jax.block_until_ready(state)

    return run, compiled


def our_forward(
    batch: int, size: int, *, times: int = 1, **fields: Any
) -> tuple[Run, jax.stages.Compiled]:
    """Returns so many of our forward passes in evaluation mode, and their program."""
    model = mv.create_model(NAME, **fields)
    graphs, parameters, statistics = split(model)
    x = jnp.asarray(images(batch, size) / 255, jnp.float32)

    def forward(parameters: Any, statistics: Any, x: Any) -> Any:
        return merge(graphs.evaluation, parameters, statistics)(x).logits

    compiled = jax.jit(forward).lower(parameters, statistics, x).compile()

    def run() -> None:
        outputs = [compiled(parameters, statistics, x) for _ in range(times)]
        jax.block_until_ready(outputs)

    return run, compiled


def has_timm() -> bool:
    """Tells whether timm and its torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "timm"))


def _timm(device: str) -> Any:
    repair_torchvision()
    import timm
    import torch

    model = timm.create_model(NAME, num_classes=LABELS).to(device)
    return model.to(memory_format=torch.channels_last)


def _pixels(batch: int, size: int, device: str) -> Any:
    import torch

    x = torch.from_numpy(images(batch, size)).permute(0, 3, 1, 2).to(device).float() / 255
    return x.contiguous(memory_format=torch.channels_last)


def _waiting(function: Run, device: str, times: int) -> Run:
    """Returns the function so many times, and then waiting for the device."""
    import torch

    def run() -> None:
        for _ in range(times):
            function()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def timm_forward(
    batch: int, size: int, *, compiled: bool = False, device: str = "cpu", times: int = 1
) -> Run:
    """Returns so many of timm's forward passes; in bfloat16 under autocast on a GPU."""
    import torch

    model, x = _timm(device).eval(), _pixels(batch, size, device)
    call = torch.compile(model) if compiled else model

    def run() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, device == "cuda"):
            call(x)

    return _waiting(run, device, times)


def timm_step(
    batch: int, size: int, *, compiled: bool = False, device: str = "cpu", times: int = 1
) -> Run:
    """Returns so many training steps of timm's model; see the top of this file."""
    import copy

    import torch

    model, x = _timm(device).train(), _pixels(batch, size, device)
    target = torch.from_numpy(labels(batch)).long().to(device)
    average = copy.deepcopy(model)
    weights, averaged = list(model.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, foreach=True)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    call = torch.compile(model) if compiled else model

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, device == "cuda"):
            loss = loss_of(call(x), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 10.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 5e-4)

    return _waiting(run, device, times)
