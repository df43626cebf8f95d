"""What a sweep says of its points: means over seeds, CSV, the Pareto front, pictures."""

import csv
import io
import json
import math
import pathlib

import pytest
from PIL import Image
from sweep_points import STEPS, make_run
from tiny import tiny_config

from mobilevitv2_jax.config import to_json
from mobilevitv2_jax.training.run_directory import mark_finished, write_results
from mobilevitv2_jax.training.sweep import plots, results

METRIC = "eval_ema/top1"


def finish(run, ema, raw):
    """Writes what a run leaves that has ended with these accuracies."""
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(to_json(run.config))
    write_results(run.directory, STEPS, {"eval/top1": raw, METRIC: ema, "eval/loss": 1.0})
    mark_finished(run.directory, STEPS)
    lines = [
        {"step": 3, "train/loss": 2.0},
        {"step": 3, METRIC: ema / 2},
        {"step": 4, "train/loss": "nan"},
        {"step": 6, "train/loss": 1.0},
        {"step": 6, METRIC: ema},
    ]
    path = pathlib.Path(run.directory) / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def groups(tmp_path):
    """Two widths with two seeds each, of which one is not finished."""
    runs = [
        make_run(tmp_path, f"width={width},seed={seed}", **{"arg.width": width, "seed": seed})
        for width in (0.5, 1.0)
        for seed in (0, 1)
    ]
    for run, values in zip(runs, ((0.9, 0.8), (0.94, 0.82), (0.96, 0.95)), strict=False):
        finish(run, *values)
    cost = {"parameters": 1_400_000, "macs": 29_000_000, "latency": 2.5, "device": "cpu"}
    costs = {results.model_key(runs[0]): cost}
    return results.collect(runs, {run.name: STEPS for run in runs}, costs)


def test_mean_and_deviation_are_over_the_seeds_of_a_group(groups):
    narrow, wide = groups
    assert (narrow.name, wide.name) == ("width=0.5", "width=1.0")
    assert narrow.mean(METRIC) == pytest.approx(0.92)
    assert narrow.deviation(METRIC) == pytest.approx(0.02 * math.sqrt(2))  # n - 1
    assert wide.deviation(METRIC) is None and wide.wanted == 2


def test_the_table_has_a_row_for_each_group(groups):
    text = results.render(groups, METRIC)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "width=0.5 2 92.00% ± 2.83 81.00% ± 1.41 1.40 29.00 2.50" in rows
    assert "width=1.0 1 of 2 96.00% 95.00% 1.40 29.00 2.50" in rows
    assert "(cpu)" in text


def test_the_csv_has_a_row_for_each_finished_point_with_all_that_is_known(groups):
    rows = list(csv.DictReader(io.StringIO(results.to_csv(groups))))
    assert [row["point"] for row in rows] == [
        "width=0.5,seed=0",
        "width=0.5,seed=1",
        "width=1.0,seed=0",
    ]
    assert rows[1]["arg.width"] == "0.5" and rows[1]["seed"] == "1"
    assert float(rows[1][METRIC]) == 0.94 and rows[1]["parameters"] == "1400000"


def test_models_that_cost_the_same_are_measured_once(tmp_path):
    changes = ({}, {"seed": 3, "schedule.learning_rate": 1.0}, {"model.width_multiplier": 0.75})
    runs = [make_run(tmp_path, name) for name in "abc"]
    for run, values in zip(runs, changes, strict=True):
        run.directory.mkdir(parents=True)
        (run.directory / "config.json").write_text(to_json(tiny_config(values)))
    assert len(results.models(runs)) == 2
    assert results.model_key(runs[0]) == results.model_key(runs[1]) != results.model_key(runs[2])


def test_costs_are_kept(tmp_path):
    assert results.read_costs(tmp_path) == {}
    results.write_costs(tmp_path, {"a": {"macs": 1}})
    assert results.read_costs(tmp_path) == {"a": {"macs": 1}}


def test_the_front_is_what_nothing_beats_in_both():
    points = [(1, 70), (2, 69), (2, 75), (3, 75), (4, 80), (1, 60)]
    assert plots.pareto_front(points) == [(1, 70), (2, 75), (4, 80)]
    assert plots.pareto_front([]) == []


@pytest.mark.parametrize("draw", [plots.save_curves, plots.save_accuracy])
def test_pictures_are_drawn_in_the_colours_of_the_groups(groups, tmp_path, draw):
    def colours(shown):
        draw(tmp_path / "picture.png", shown, METRIC)
        with Image.open(tmp_path / "picture.png") as picture:
            return {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}

    blue, orange = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)
    both, one = colours(groups), colours(groups[:1])
    # Lines are drawn with some transparency, markers of the legend are not.
    assert len(both) > len(one)
    if draw is plots.save_accuracy:
        assert {blue, orange} <= both and orange not in one
