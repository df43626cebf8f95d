"""The command line: verbs, help, and a user's mistakes."""

import errno
import importlib
import os
import subprocess
import sys
import types

import pytest
from absl import flags

from mobilevitv2_jax import config as configs
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.training.protocol import Options


def run(capsys, *argv):
    with pytest.raises(SystemExit) as leaving:
        main(list(argv))
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


MISTAKES = [
    ("tran", "did you mean 'train'?"),
    ("train --config.learning_rate=1", "'schedule.learning_rate'?"),
    ("train --config.schedule.learning_rat=1", "'schedule.learning_rate'?"),
    ("train --config.schedule.learning_rat 1", "'schedule.learning_rate'?"),
    ("train --noconfig.log.tensorbord", "'log.tensorboard'?"),
    ("train --config.schedule=1", "--config.schedule is a group of keys"),
    ("train --config.data.batch_size=x", "--config.data.batch_size=x: must be an integer"),
    ("train --config.data.batch_size=1.5", "--config.data.batch_size=1.5: must be an integer"),
    ("train --config.ema.momentum=fast", "--config.ema.momentum=fast: must be a number"),
    ("train --config.log.tensorboard=maybe", "must be true or false"),
    ("train --config.augment.scale=1", "must be 2 numbers in quotes, such as '(0.08, 1.0)'"),
    ("train --config.augment.scale=(1,2,3)", "must be 2 numbers"),
    ("train --config.model.n_attn_blocks=(1,2,.5)", "must be 3 integers"),
    ("train --config.model.num_labels=few", "must be an integer or None"),
    ("train --config.model.width_multiplier=-1", "config.model.width_multiplier must be a"),
    ("train --config.schedule.total=20", "config.schedule.total must be a number of steps"),
    ("train --config=configs/digit.py", "did you mean 'configs/digits.py'?"),
    ("train --config configs/digits.py:widht=1", "did you mean 'width'?"),
    ("train --dryrun", "unknown option --dryrun (did you mean 'dry-run'?)"),
    ("train --learning-rate=1", "'config.schedule.learning_rate'?"),
    ("train --workdir", "Missing value for flag --workdir"),
    ("train here", "unexpected argument 'here'"),
    ("train --config.log.tensorboard false", "unexpected argument 'false'"),
    ("eval", "--workdir is required"),
    ("eval --workdir x --step 3 --best", "--step and --best exclude each other"),
    ("eval --workdir x --nobest=true", "does not take an argument"),
    ("eval --workdir x --step=last", "--step=last: must be an integer"),
    ("eval --workdir no/such/run", "it has no config.json"),
    ("inspect --workdir no/such/run", "it has no config.json"),
    ("inspect --workdir x --config.seed=1", "so --config.seed has no place beside it"),
    ("inspect --config.mesh.fsdp=0", "config.mesh.fsdp must be at least 1"),
    ("sweep", "a config is required, such as"),
    ("sweep configs/digits.py configs/digits.py", "unexpected argument 'configs/digits.py'"),
    ("sweep configs/digits_segmentation.py", "must define sweep()"),
    ("sweep configs/digits.py --config.seed=1", "--config.seed is what the sweep varies"),
    ("sweep configs/digits.py --executor=slrm", "(did you mean 'slurm'?)"),
    ("sweep configs/digits.py --parallel=0", "--parallel must be at least 1, got 0"),
    ("sweep configs/digits.py --retries=-1", "--retries must be at least 0, got -1"),
    ("sweep configs/digits.py --sbatch=--gpus=1", "--sbatch goes with --executor=slurm"),
    ("sweep configs/digits.py --workdir=gs://b/s", "must be on a file system for --executor=local"),
    ("compile", "--topology is required"),
    ("export --pretrained x --to onnx", "--out is required"),
    ("bench --exported a.onnx b.onnx", "--pretrained is required"),
    ("bench a.onnx b.onnx --pretrained x --rounds 0", "--rounds must be at least 1, got 0"),
    ("export --pretrained x --to onnxx --out x", "(did you mean 'onnx'?)"),
    (
        "export --pretrained x --to litert --out x --batch any",
        "--batch=any is for stablehlo and onnx",
    ),
    ("export --pretrained x --to coreml --out x --any-size", "--any-size is for stablehlo: coreml"),
    (
        "export --pretrained x --to onnx --out x --quantize int4",
        "--quantize for onnx must be one of",
    ),
    ("export --pretrained x --to onnx --out x --from-size 9x9", "give --preprocess, too"),
    ("export --pretrained x --to onnx --out x --size 9,9", "--size must be a side or HEIGHTxWIDTH"),
    ("export --pretrained x --to onnx --out x --batch few", "--batch must be a number or any"),
    ("export --pretrained x --to onnx --out x --output mask", "--output must be one of logits"),
    ("export --pretrained x --to onnx --out x --step 1 --best", "exclude each other"),
    ("compile --topolgy v5e:2x2", "did you mean 'topology'?"),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES)
def test_a_mistake_is_one_paragraph_with_its_remedy_and_exit_status_2(capsys, line, words):
    status, out, err = run(capsys, *line.split())
    assert status == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "Traceback" not in err
    assert words in err


def test_a_mistake_in_a_config_file_is_shown_with_its_line(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(arg=''):\n    return 1 / 0\n")
    status, _, err = run(capsys, "train", "--config", str(tmp_path / "mine.py"))
    assert status == 2
    assert "mine.py:2 failed with ZeroDivisionError: division by zero" in err


def test_a_workdir_that_holds_something_else_is_refused_by_eval(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    status, _, err = run(capsys, "eval", "--workdir", str(tmp_path))
    assert status == 2 and "is not the config of a run" in err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_verbs_are_listed(capsys, argv):
    status, out, _ = run(capsys, *argv)
    assert status == 0
    assert "train" in out and "eval" in out and "inspect" in out


def test_help_for_train_has_examples_options_and_every_key_with_its_comment(capsys):
    status, out, _ = run(capsys, "train", "--help")
    assert status == 0
    assert "python train.py --config configs/digits.py:width=1.0" in out
    assert "--dry-run" in out and "--workdir" in out
    for key in configs.flatten(configs.default_config()):
        assert f"\n  {key} = " in out
    assert "optimizer.gradient_clip = 10.0                  largest global L2 norm" in out
    assert "model.patch_size = 2                            side of the square patches" in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_for_predict_has_its_options_and_no_keys(capsys):
    status, out, _ = run(capsys, "predict", "--help")
    assert status == 0
    assert "--best" in out and "schedule.total" not in out


@pytest.mark.parametrize("option", ["--dry-run", "--dry_run"])
def test_a_dry_run_shows_the_resolved_config_and_writes_nothing(
    capsys, tmp_path, monkeypatch, option
):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(
        capsys, "train", "--config.seed=3", option, "--config", "configs/digits.py:width=1.0"
    )
    assert status == 0
    assert "\nseed = 3\n" in out and "\nmodel.width_multiplier = 1.0\n" in out
    assert "would train in runs/digits-width=1.0-" in out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def calls(monkeypatch):
    """Puts a recorder in the place of the training loop and of the evaluation."""
    recorded = []

    def stand_in(package, name, function):
        importlib.import_module(package)
        module = types.ModuleType(f"{package}.{name}")

        def record(*args, **kwargs):
            recorded.append((args, kwargs))
            return 7

        setattr(module, function, record)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys.modules[package], name, module, raising=False)

    stand_in("mobilevitv2_jax.training", "loop", "train")
    stand_in("mobilevitv2_jax.training", "evaluate", "evaluate_run")
    return recorded


def test_train_hands_the_loop_a_locked_config_its_workdir_and_the_command(capsys, calls):
    status, _, _ = run(capsys, "train", "--config.schedule.total=3 epochs", "--workdir=runs/x")
    ((config, workdir, command),) = (args for args, _ in calls)
    assert status == 7
    assert config.is_locked and config.schedule.total == "3 epochs"
    assert str(workdir) == "runs/x"
    assert command == "python train.py '--config.schedule.total=3 epochs' --workdir=runs/x"


def test_overrides_take_the_schema_s_types_in_every_spelling(capsys, calls):
    run(
        capsys,
        "train",
        *("--config.schedule.learning_rate=1", "--config.augment.scale", "(0.2, 1)"),
        *("--noconfig.log.tensorboard", "--config.augment.random_resized_crop"),
        *("--config.model.num_labels=None", "--config.checkpoint.allow_changes", "seed,data"),
        *("--config.data.directory=~/a-b/c_d", "--config.schedule.per_epoch=true"),
    )
    config = calls[0][0][0]
    assert isinstance(config.schedule.learning_rate, float) and config.schedule.learning_rate == 1
    assert config.augment.scale == (0.2, 1.0)
    assert config.log.tensorboard is False and config.augment.random_resized_crop is True
    assert config.model.num_labels is None
    assert config.checkpoint.allow_changes == "seed,data"
    assert config.data.directory == "~/a-b/c_d"
    assert config.schedule.per_epoch is True


def test_the_last_of_two_values_counts(capsys, calls):
    run(capsys, "train", "--config.seed=1", "--config.seed", "2")
    assert calls[0][0][0].seed == 2


@pytest.mark.parametrize(
    ("options", "step", "best"),
    [([], None, False), (["--step", "0"], 0, False), (["--best"], None, True)],
)
def test_eval_hands_over_the_config_of_the_run(capsys, calls, tmp_path, options, step, best):
    config = configs.load("configs/digits.py", "width=1.0")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    status, _, _ = run(capsys, "eval", "--workdir", str(tmp_path), *options)
    ((args, kwargs),) = calls
    assert status == 7
    assert args[0] == config and str(args[1]) == str(tmp_path)
    assert kwargs == {"step": step, "best": best, "protocol": None}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--scales=1,none", "--scales must be positive numbers with commas, such as 0.75,1,1.25"),
        ("--scales=0", "got '0'"),
        ("--max-shapes=0", "--max-shapes must be at least 1, got 0"),
    ],
)
def test_eval_refuses_what_is_out_of_range(capsys, calls, tmp_path, option, message):
    config = configs.load("configs/digits_segmentation.py")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    status, _, error = run(capsys, "eval", "--workdir", str(tmp_path), option)
    assert status == 2 and message in error and not calls


@pytest.mark.parametrize(("options", "protocol"), [([], Options()), (["--squashed"], None)])
def test_eval_judges_a_segmentation_as_published_or_as_the_training_does(
    capsys, calls, tmp_path, options, protocol
):
    config = configs.load("configs/digits_segmentation.py")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    run(capsys, "eval", "--workdir", str(tmp_path), *options)
    assert calls[0][1]["protocol"] == protocol


def test_eval_refuses_options_of_the_protocol_for_the_quick_evaluation(capsys, calls, tmp_path):
    config = configs.load("configs/digits_segmentation.py")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    options = ("--squashed", "--save-pictures")
    status, _, error = run(capsys, "eval", "--workdir", str(tmp_path), *options)
    assert status == 2 and "which --save-pictures belongs to" in error and not calls


def test_eval_hands_over_how_a_segmentation_is_to_be_judged(capsys, calls, tmp_path):
    config = configs.load("configs/digits_segmentation.py")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    options = ("--scales=0.5,1", "--flip", "--save-pictures", "--max-shapes=9")
    run(capsys, "eval", "--workdir", str(tmp_path), *options)
    protocol = calls[0][1]["protocol"]
    assert (protocol.scales, protocol.flip, protocol.most_shapes) == ((0.5, 1.0), True, 9)
    assert str(protocol.pictures) == str(tmp_path / "pictures")


@pytest.mark.parametrize(
    "option", ["--flip", "--scales=1", "--save-pictures", "--max-shapes=3", "--squashed"]
)
def test_eval_of_a_classifier_has_no_options_of_segmentation(capsys, calls, tmp_path, option):
    config = configs.load("configs/digits.py")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    status, _, error = run(capsys, "eval", "--workdir", str(tmp_path), option)
    assert status == 2 and "is for segmentation, and this run is a classification" in error


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (RuntimeError, None)])
def test_ctrl_c_exits_130_and_a_bug_keeps_its_traceback(monkeypatch, capsys, error, status):
    module = types.ModuleType("fails")

    def fail(argv):
        raise error

    module.run = fail
    monkeypatch.setitem(sys.modules, "fails", module)
    monkeypatch.setattr("mobilevitv2_jax.cli.main.VERBS", {"fail": ("fails", "fails")})
    if status is None:
        with pytest.raises(error):
            main(["fail"])
    else:
        assert run(capsys, "fail")[0] == status


def test_a_full_disk_is_told_in_a_line_and_other_errors_of_the_system_keep_their_traceback(
    monkeypatch, capsys
):
    module = types.ModuleType("fails")
    monkeypatch.setitem(sys.modules, "fails", module)
    monkeypatch.setattr("mobilevitv2_jax.cli.main.VERBS", {"fail": ("fails", "fails")})

    def fail(argv):
        raise OSError(number, os.strerror(number), "runs/a/metrics.jsonl")

    module.run = fail
    number = errno.ENOSPC
    status, _, said = run(capsys, "fail")
    assert (status, said) == (
        1,
        "error: [Errno 28] No space left on device: 'runs/a/metrics.jsonl': free some space, and "
        "run the same command again\n",
    )
    number = errno.EIO
    with pytest.raises(OSError):
        main(["fail"])


def test_flags_that_libraries_define_can_be_read_afterwards(capsys, calls):
    run(capsys, "train")
    assert flags.FLAGS.is_parsed()


@pytest.mark.parametrize("option", ["--help", "--config.learning_rate=1", "--dry-run"])
def test_neither_help_nor_a_mistake_waits_for_jax(option):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', {option!r}]\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit:\n    print({'jax', 'flax', 'grain', 'cv2'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=configs.REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.endswith("set()\n"), done.stderr
