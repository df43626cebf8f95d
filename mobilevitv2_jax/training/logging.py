"""What a run says: console lines, `metrics.jsonl` and TensorBoard; and the clock behind them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mobilevitv2_jax.files import is_local, write_whole
from mobilevitv2_jax.training.tensorboard import EventFile


@dataclasses.dataclass
class Clock:
    """Time spent in training steps: without compiling, evaluating and saving.

    It is saved with each checkpoint, so that it goes on over interruptions.

    Attributes:
        seconds: training time of the whole run.
        waiting: the part of it spent waiting for data.
        steps: steps that were timed.
    """

    seconds: float = 0.0
    waiting: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        self._since = time.perf_counter()
        self._mark = (self.seconds, self.waiting, self.steps)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        self._advance()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts what happens inside as waiting, too."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waiting += time.perf_counter() - start

    def tick(self) -> None:
        """Counts a step."""
        self.steps += 1

    def interval(self) -> tuple[float, float]:
        """Returns seconds per step and the share of waiting since the last call."""
        self._advance()
        seconds, waiting, steps = (
            now - then
            for now, then in zip((self.seconds, self.waiting, self.steps), self._mark, strict=True)
        )
        self._mark = (self.seconds, self.waiting, self.steps)
        return seconds / max(steps, 1), waiting / max(seconds, 1e-9)

    def to_dict(self) -> dict[str, float]:
        """Returns the counters, for the checkpoint's metadata; to be called while paused."""
        return dataclasses.asdict(self)

    def _advance(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now


def format_seconds(seconds: float) -> str:
    """Returns a duration such as "1:05:09" or "2:07"."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """What turns a step's time into rates.

    Attributes:
        steps: length of the run.
        steps_per_epoch: length of an epoch.
        batch_size: images per step, over all devices.
        tflop_per_image: arithmetic of training on one image, in 10^12 operations.
        peak_tflops: of all devices together, where it is known.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    tflop_per_image: float
    peak_tflops: float | None


def console_line(
    step: int, metrics: Mapping[str, float], scale: Scale, seconds_per_step: float
) -> str:
    """Returns the line that tells where training stands."""
    parts = [
        f"step {step:{len(str(scale.steps))}d}/{scale.steps}",
        f"epoch {step / scale.steps_per_epoch:.1f}",
        f"loss {metrics['train/loss']:.4f}",
        f"lr {metrics['train/learning_rate']:.2e}",
        f"grad {metrics['train/gradient_norm']:.2f}",
        f"{metrics['train/images_per_second']:.0f} img/s",
        f"data {metrics['train/data_wait']:.1%}",
        f"{metrics['train/tflops']:.3g} TFLOP/s",
    ]
    if "train/utilisation" in metrics:
        parts.append(f"util {metrics['train/utilisation']:.1%}")
    parts.append(f"ETA {format_seconds(seconds_per_step * (scale.steps - step))}")
    return "  ".join(parts)


def skipped_line(step: int, skipped: int, examples: Sequence[int]) -> str:
    """Returns the line that tells of a step that was not finite, and of what data."""
    shown = ", ".join(map(str, examples[:8])) + (", …" if len(examples) > 8 else "")
    return f"step {step}: not finite, skipped ({skipped} in a row); examples {shown}"


def rates(scale: Scale, seconds_per_step: float, data_wait: float) -> dict[str, float]:
    """Returns the metrics that follow from the time of a step."""
    images_per_second = scale.batch_size / seconds_per_step
    tflops = scale.tflop_per_image * images_per_second
    values = {
        "train/images_per_second": images_per_second,
        "train/data_wait": data_wait,
        "train/tflops": tflops,
    }
    if scale.peak_tflops:
        values["train/utilisation"] = tflops / scale.peak_tflops
    return values


def say(text: str) -> None:
    """Prints a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Logger:
    """Writes metrics of one run; on processes other than the first it does nothing.

    An object store cannot be appended to: for a run that lives on one, the files are written on
    the local disk and copied there as a whole by `publish`.

    Args:
        directory: the run directory.
        step: where the run continues; later lines of an interrupted run are cut off.
        tensorboard: also write TensorBoard events.
        active: False on all processes but the first.
        wandb: a run of Weights & Biases, which gets the metrics, too.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        step: int,
        tensorboard: bool,
        active: bool,
        wandb: Any = None,
    ) -> None:
        self._active = active
        self._events: EventFile | None = None
        self._wandb = wandb
        if not active:
            return
        self._directory = epath.Path(directory)
        self._here = self._directory
        if not is_local(directory):
            self._here = epath.Path(tempfile.mkdtemp(prefix="mobilevitv2-"))
        earlier = read_metrics(self._directory / "metrics.jsonl")
        kept = "".join(_json_line(line) for line in earlier if line["step"] <= step)
        write_whole(self._here / "metrics.jsonl", kept)
        self._file = (self._here / "metrics.jsonl").open("a")
        if tensorboard:
            self._events = EventFile(self._here, step)

    def say(self, text: str = "") -> None:
        """Prints a line."""
        if self._active:
            say(text)

    def write(self, step: int, metrics: Mapping[str, float | list[int]]) -> None:
        """Appends the metrics of a step to `metrics.jsonl`, and its numbers to TensorBoard."""
        if not self._active:
            return
        self._file.write(_json_line({"step": step, **metrics}))
        self._file.flush()
        if self._events is not None:
            numbers = {name: x for name, x in metrics.items() if not isinstance(x, list)}
            self._events.write(step, numbers)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def publish(self) -> None:
        """Brings what was written to the disk and, if the run lives there, to an object store."""
        if not self._active:
            return
        if self._events is not None:
            self._events.flush()
        if self._here == self._directory:
            return
        for path in self._here.iterdir():
            (self._directory / path.name).write_bytes(path.read_bytes())

    def close(self) -> None:
        """Closes the files, and publishes them."""
        if not self._active:
            return
        self.publish()
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._here != self._directory:
            self._here.rmtree()


def _json_line(values: Mapping[str, Any]) -> str:
    return json.dumps({name: _json_value(value) for name, value in values.items()}) + "\n"


def _json_value(value: Any) -> Any:
    # JSON has no NaN: a reader in another language would refuse the whole file.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`; one that was cut off at the end is left out."""
    file = epath.Path(path)
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines
