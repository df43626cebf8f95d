"""The published evaluation of a segmentation experiment: see `evaluation/segmentation.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
from etils import epath

from mobilevitv2_jax.data.image import decode
from mobilevitv2_jax.data.loader import planned_batches, survey
from mobilevitv2_jax.data.protocol import Protocol, make_plan
from mobilevitv2_jax.data.sources import Source
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.evaluation.classification import Weights
from mobilevitv2_jax.evaluation.segmentation import (
    Judgement,
    Segmented,
    evaluate_protocol,
    make_protocol_step,
    named_metrics,
)
from mobilevitv2_jax.evaluation.whole_pictures import Shown, save_whole_segmentations
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.training import logging
from mobilevitv2_jax.training.experiment import Experiment
from mobilevitv2_jax.training.mesh import batch_sharding, replicated

MOST_SHAPES = 256
"""Each shape is a compilation: photographs of all sizes could ask for thousands."""

_SHOWN = 8  # of the worst images, and of the best
_NAMED = 5  # of the images that cannot be read


@dataclasses.dataclass(frozen=True)
class Options:
    """How the protocol is run; by default as the published figures were found.

    Attributes:
        scales: factors of the short side, one view of every image each; published: 1.
        flip: also show every view mirrored.
        most_shapes: how many compilations are put up with.
        pictures: where to draw the worst and the best images; None draws none.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    most_shapes: int = MOST_SHAPES
    pictures: epath.PathLike | None = None

    @property
    def suffix(self) -> str:
        """Of the names of the metrics: with several views it is another protocol."""
        return "_multiscale" if self.flip or self.scales != (1.0,) else ""


def evaluate_by_protocol(
    experiment: Experiment,
    weights: Weights,
    options: Options,
    over: Callable[[Iterable], Iterable] = iter,
) -> dict[str, float]:
    """Returns "eval/miou", the IoU of each class, …, over the whole held-out images.

    Args:
        experiment: a segmentation.
        weights: what to judge, by the prefix of its metrics, to which the suffix of the options
            is added; of the last, pictures are drawn.
        options: how.
        over: examples that are looked at, and then the batches, are taken through it; it may
            watch them go by.

    Raises:
        ConfigError: if the images have more shapes than may be compiled.
    """
    config, source = experiment.config, experiment.eval_source
    sizes, problems = survey(source, config.data.threads, over)
    protocol = Protocol(
        config.eval.resize,
        experiment.model.output_stride,
        config.eval.interpolation,
        options.scales,
    )
    plan = make_plan(protocol, sizes, config.eval.batch_size)
    _check_shapes(len(plan.bounds), options.most_shapes)
    logging.say(
        f"{plan.counted.sum():,} images of {source.name} in {len(plan.bounds)} shapes, "
        "each of which is compiled once"
    )
    _tell_problems(problems)
    step = make_protocol_step(
        experiment.graphs.evaluation,
        Pixels.from_config(config),
        experiment.model.semantic_loss_ignore_index,
        options.flip,
    )
    with planned_batches(
        source,
        plan,
        order=plan.order,
        counted=plan.counted,
        batch_size=config.eval.batch_size,
        process_index=experiment.share[0],
        process_count=experiment.share[1],
        workers=experiment.workers.count,
        threads=config.data.threads,
    ) as batches:
        judgements, compilations = evaluate_protocol(
            step,
            {prefix + options.suffix: value for prefix, value in weights.items()},
            over(batches),
            experiment.put,
            (replicated(experiment.mesh), batch_sharding(experiment.mesh)),
            extremes=_SHOWN if options.pictures else 0,
        )
    logging.say(f"compiled {compilations.count} programs in {compilations.seconds:.0f} s")
    metrics = named_metrics(judgements, source.class_names)
    if options.pictures and jax.process_index() == 0:
        _draw(options.pictures, source, judgements)
    return {**metrics, "eval/corrupt": float(len(problems))} if problems else metrics


def _check_shapes(count: int, most: int) -> None:
    if count > most:
        raise ConfigError(
            f"the held-out images have {count} shapes, each of which is a program to compile, and "
            f"at most {most} are put up with: evaluate fewer images, or give --max-shapes={count}"
        )


def _tell_problems(problems: Sequence[str]) -> None:
    if problems:
        more = "; ..." * (len(problems) > _NAMED)
        logging.say(f"{len(problems)} cannot be read: {'; '.join(problems[:_NAMED])}{more}")


def _draw(directory: epath.PathLike, source: Source, judgements: Mapping[str, Judgement]) -> None:
    prefix, judgement = list(judgements.items())[-1]
    for name, found in (("worst", judgement.worst), ("best", judgement.best)):
        title = f"{source.name}, held out: the {name} by IoU ({prefix})"
        shown = [_shown(source, rank, one) for rank, one in enumerate(found, 1)]
        save_whole_segmentations(epath.Path(directory) / name, shown, source.class_names, title)
    logging.say(f"pictures of the worst and the best images are in {directory}")


def _shown(source: Source, rank: int, found: Segmented) -> Shown:
    record = source[found.index]
    image, truth = record["image"], record["label"]
    rows, columns = truth.shape
    return Shown(
        name=f"{rank:02d}_{found.index}",
        image=decode(image) if isinstance(image, bytes) else image,
        truth=truth,
        prediction=found.classes[:rows, :columns],
        iou=found.iou,
    )
