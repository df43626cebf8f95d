"""`mobilevitv2 compile`: topologies, what is read off a program, bounds, and what does not fit."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types

import jax
import pytest
from tiny import VALUES, tiny_config, use_small_model

import mobilevitv2_jax as mv
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.config import ConfigError
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.training import pod
from mobilevitv2_jax.training.hlo import collectives, kernel_traffic
from mobilevitv2_jax.training.mesh import peak_tflops
from mobilevitv2_jax.training.pod import CHIPS, Chip, Report, bounds, parse_topology

REPORT = Report(
    chips=4,
    images=8,
    arguments=20_500_000,
    temporaries=3 * 10**9,
    program=0,
    flops=16e9,
    traffic=8.19e9,
    collectives=(("all-gather", 2, 4000), ("all-reduce", 3, 8_000_000)),
    passed=6_400_000_000,
    memory_traffic=4_000_000_000,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Takes back what the verb sets for the process that it usually has to itself."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")


def compile_(capsys, *argv):
    with pytest.raises(SystemExit) as leaving:
        main(["compile", *(f"--config.{key}={value}" for key, value in VALUES.items()), *argv])
    return leaving.value.code, *capsys.readouterr()


@pytest.fixture
def a_cpu_for_a_pod(monkeypatch):
    """Compiles the small model for the CPU that is here, as if it were the topology."""
    use_small_model(monkeypatch)
    monkeypatch.setattr(pod, "find_devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr(pod, "peak_tflops", lambda mesh: 197.0)


@pytest.mark.parametrize(
    ("text", "kind", "chips"), [("v5e:16x16", "v5e", 256), ("v5p:2x2x1", "v5p", 4)]
)
def test_a_topology_is_a_chip_and_its_numbers_along_the_axes(text, kind, chips):
    assert parse_topology(text) == (kind, chips)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5e", "must be CHIP:ROWSxCOLUMNS such as 'v5e:16x16', got 'v5e'"),
        ("v5e:16", "must be CHIP:ROWSxCOLUMNS"),
        ("v5e:2x2x2x2", "must be CHIP:ROWSxCOLUMNS"),
        ("v5d:2x2", "must name one of v5e, v5p, v6e, got 'v5d' .did you mean 'v5"),
    ],
)
def test_what_is_no_topology_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_topology(text)


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, error = compile_(capsys, "--topology=v5e:1x1")
    assert status == 2
    assert error == (
        "error: mobilevitv2 compile needs libtpu, the compiler for TPU: "
        "pip install 'mobilevitv2-jax[tpu-compile]'\n"
    )


@pytest.mark.parametrize(
    ("chip", "name"), [("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")]
)
def test_the_names_that_libtpu_gives_to_the_chips_have_a_peak(chip, name):
    device = types.SimpleNamespace(device_kind=name)
    mesh = types.SimpleNamespace(size=1, devices=types.SimpleNamespace(flat=[device]))
    assert chip in CHIPS and peak_tflops(mesh) > 100


def test_collectives_are_read_off_a_program_with_the_bytes_of_their_results():
    # Lines as libtpu writes them, layouts and tuples included.
    text = """
  %all-reduce = f32[8]{0:T(128)S(1)} all-reduce(%get-tuple-element.76), channel_id=1
  %fusion = pred[]{:T(512)} fusion(%all-reduce, %copy-done.42), kind=kLoop
  %ar = (f32[10]{0:T(128)}, f32[12,10]{1,0:T(8,128)}, /*index=5*/f32[]{:T(128)}) all-reduce(%a)
  %all-gather.1 = bf16[3,3,3,8]{2,1,0,3:T(4,128)(2,1)S(1)} all-gather(%copy.31), dimensions={3}
  %ags = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}
  %agd = f32[8]{0} all-gather-done(%ags)
"""
    assert collectives(text) == (
        ("all-gather", 2, 2 * 216 + 4 * 8),
        ("all-reduce", 2, 4 * 8 + 4 * (10 + 120 + 1)),
    )


def test_the_bytes_of_kernels_are_read_off_a_program():
    text = """HloModule step

%inner (x: f32[8]) -> f32[8] {
  ROOT %not_counted = f32[8]{0} fusion(%x), kind=kLoop
}

ENTRY %main.5 (a: f32[8], b: bf16[2,4]) -> (f32[8]) {
  %a = f32[8]{0:T(128)} parameter(0)
  %b = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start.1 = (bf16[2,4]{1,0:S(1)}, bf16[2,4]{1,0}, u32[]{:S(2)}) copy-start(%b)
  %near = bf16[2,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[8]{0:T(128)}), f32[2]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %part = f32[2]{0:T(128)S(1)} slice-done(%slice-start.1)
  %fusion.1 = (f32[8]{0:T(128)}, f32[]{:T(128)S(1)}) fusion(%a, %near, %part), calls=%inner
  %first = f32[8]{0:T(128)} get-tuple-element(%fusion.1), index=0
  %copy.2 = f32[8]{0:T(128)} copy(%first)
  ROOT %custom-call.1 = (f32[8]{0:T(128)}) custom-call(%copy.2), custom_call_target="x"
}
"""
    passed, memory = kernel_traffic(text)
    fusion, call = (32 + 16 + 8) + (32 + 4), 32 + 32
    assert passed == fusion + call
    # The copies bring 16 and 8 bytes near; the fusion reads and writes the rest.
    assert memory == 16 + 8 + (32 + 32) + (32 + 32) + call


def test_bounds_are_the_amounts_over_the_peaks():
    found = bounds(REPORT, Chip(16 * 2**30, 819e9, 200e9), peak=200e12)
    assert found["arithmetic"] == pytest.approx(80e-6)
    assert found["memory traffic"] == pytest.approx(0.01)
    # Three quarters of what is gathered, and twice that of what is reduced.
    assert found["links"] == pytest.approx(0.75 * (4000 + 2 * 8e6) / 200e9)
    text = " ".join(pod.render(REPORT, CHIPS["v5e"], 200e12).split())
    for words in (
        "memory per chip 3.02 GB of 17.2 GB",
        "arithmetic per image 2 GFLOP traffic per image 1.02 GB of fusions and custom calls 800 MB "
        "with main memory 500 MB",
        "all-reduce 3, results of 8 MB together",
        "a step takes at least 10 ms, by memory traffic and so at most 3,200 images/s on 4 chips",
    ):
        assert words in text
    in_parts = pod.render(dataclasses.replace(REPORT, parts=2), CHIPS["v5e"], 200e12)
    assert "one of 2 parts, with the update, takes at least" in in_parts
    assert "images/s" not in in_parts


def test_the_step_is_that_of_the_weights_that_a_run_would_begin_with(capsys, monkeypatch, tmp_path):
    config = mv.MobileViTV2Config(width_multiplier=0.75, odd_size_rule="drop", num_labels=3)
    model = mv.MobileViTV2ForImageClassification(config, rngs=Blank())
    model.save_pretrained(tmp_path)
    found = []
    monkeypatch.setattr(pod, "compile_step", lambda *given: found.append(given) or (None, "done"))
    argv = ["compile", "--topology=v5e:2x2", f"--config.init.pretrained={tmp_path}"]
    with pytest.raises(SystemExit):
        main([*argv, "--config=configs/imagenet.py", "--config.data.source=synthetic"])
    out, err = capsys.readouterr()
    assert out == "done" and "model.width_multiplier = 0.75, as" in err
    ((config, _),) = found
    assert (config.model.width_multiplier, config.model.odd_size_rule) == (0.75, "drop")


@pytest.mark.slow
def test_the_report_is_that_of_the_compiled_step(a_cpu_for_a_pod, capsys, monkeypatch):
    reports = []
    original = pod.analyze
    monkeypatch.setattr(pod, "analyze", lambda *a: reports.append(original(*a)) or reports[0])
    status, out, error = compile_(capsys, "--topology=v5e:1x1")
    assert (status, error) == (0, "")
    (report,) = reports
    assert (report.chips, report.images, report.collectives) == (1, 16, ())
    assert report.flops > 0 and report.traffic > 0 and report.temporaries > 0
    assert out == pod.render(report, CHIPS["v5e"], 197e12)
    assert "none: depthwise ones are shifts" in out


@pytest.mark.slow
def test_a_program_that_does_not_fit_a_chip_ends_with_an_error(
    a_cpu_for_a_pod, capsys, monkeypatch
):
    small = dataclasses.replace(CHIPS["v5e"], memory=100_000)
    monkeypatch.setitem(CHIPS, "v5e", small)
    status, out, error = compile_(capsys, "--topology=v5e:1x1")
    assert (status, out) == (1, "")
    assert error.startswith("error: out of memory on a device (cpu with 100 kB): ")
    assert "a chip of v5e has 100 kB" in error and "accumulation_steps=" in error


def test_more_or_fewer_devices_than_the_topology_has_are_refused(a_cpu_for_a_pod):
    with pytest.raises(ConfigError, match=r"config\.mesh\.devices must be 0 or 16, .* got 1"):
        pod.compile_step(tiny_config(), "v5e:4x4")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[tpu-compile]'",
)
def test_the_training_step_is_compiled_for_a_pod_with_its_depthwise_convolutions():
    options = {**VALUES, "mesh.devices": 0, "data.batch_size": 2048, "eval.batch_size": 256}
    argv = ["compile", "--topology=v5e:16x16", *(f"--config.{k}={v}" for k, v in options.items())]
    command = f"from mobilevitv2_jax.cli.main import main; main({argv!r})"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = dict(line.split("  ", 1) for line in map(str.strip, done.stdout.splitlines()))
    # Nine of them, forward and backward, and with respect to their kernels.
    assert int(rows["grouped convolutions"]) >= 18
    assert "all-reduce" in rows and rows["memory per chip"].strip().endswith("of 17.2 GB")
