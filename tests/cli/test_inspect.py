"""`mobilevitv2 inspect`: what it prints, and that it neither trains, compiles nor writes."""

import jax
import pytest
from tiny import VALUES, tiny_config, use_small_model

import mobilevitv2_jax as mv
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.config import flatten, to_json
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.weights import images


@pytest.fixture
def nothing_is_compiled(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("compiled")

    use_small_model(monkeypatch)
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)


def inspect(capsys, *argv):
    with pytest.raises(SystemExit) as leaving:
        main(["inspect", *argv])
    out, err = capsys.readouterr()
    assert (leaving.value.code, err) == (0, "")
    return out


def test_a_config_is_told_by_sections(nothing_is_compiled, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = inspect(capsys, *(f"--config.{key}={value}" for key, value in VALUES.items()))
    sections = {part.split("\n")[0]: part for part in out.split("== ")}
    for key in flatten(tiny_config()):
        assert f"\n{key} = " in sections["config"]
    assert "stage 1" in sections["model, for one image of 32 x 32"]
    batch = sections["batch"].splitlines()[1:3]
    assert [" ".join(line.split()) for line in batch] == [
        "image uint8 [16, 32, 32, 3], on each device [16, 32, 32, 3]",
        "label int32 [16], on each device [16]",
    ]
    memory = sections["memory on each device"]
    for name in ("parameters", "gradients", "optimizer", "average", "activations", "total"):
        assert f"\n{name} " in memory
    assert "mesh data=1 (cpu)" in sections["shardings"]
    assert "arrays of the state are whole on every device" in sections["shardings"]
    for name in ("dilation", "odd sizes", "initialization", "depthwise", "batch norm"):
        assert f"\n{name} " in sections["rules"]
    assert "auto: shifts on cpu" in sections["rules"]
    assert "statistics over 16 images" in sections["rules"]
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_a_batch_are_normalised_by_themselves(nothing_is_compiled, capsys, tmp_path):
    config = tiny_config({"optimizer.accumulation_steps": 4})
    (tmp_path / "config.json").write_text(to_json(config))
    assert "statistics over 4 images" in inspect(capsys, "--workdir", str(tmp_path))


def test_a_run_is_told_by_the_config_it_was_made_with(nothing_is_compiled, capsys, tmp_path):
    (tmp_path / "config.json").write_text(to_json(tiny_config({"seed": 7})))
    assert "\nseed = 7\n" in inspect(capsys, "--workdir", str(tmp_path))


def test_weights_are_told_with_the_rules_they_bring(capsys, tmp_path):
    fields = {name.removeprefix("model."): VALUES[name] for name in VALUES if "model." in name}
    config = mv.MobileViTV2Config(
        **fields, id2label={0: "cat", 1: "dog"}, odd_size_rule="drop", dilation_rule="huggingface"
    )
    rules = images.rules(288, 256, "bilinear", flip=True)
    model = mv.MobileViTV2ForImageClassification(config, rngs=Blank())
    model.save_pretrained(tmp_path, processor=rules)
    lines = inspect(capsys, "--pretrained", str(tmp_path)).splitlines()
    told = {" ".join(line.split()) for line in lines}
    assert "class MobileViTV2ForImageClassification" in told
    assert "channel order BGR" in told
    assert "resize shortest_edge 288, bilinear" in told
    assert "crop 256 x 256" in told
    assert "odd sizes drop (at 256 pixels it acts in no stage)" in told
    assert "classes 2: cat, dog" in told


def test_help_has_examples_options_and_keys(capsys):
    out = inspect(capsys, "--help")
    assert "mobilevitv2 inspect --workdir runs/digits" in out
    assert "--workdir" in out and "mesh.fsdp = 1" in out
