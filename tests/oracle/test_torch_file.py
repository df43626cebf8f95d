"""What live torch writes is read bit for bit, and what it refuses to load is refused, too."""

import os

import ml_dtypes
import numpy as np
import pytest
from oracle.comparison import torch
from reference_torch import huggingface

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.weights import torch_file

pytestmark = pytest.mark.oracle


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def assert_equal(read, tensors):
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = as_numpy(tensor)
        assert read[name].dtype == expected.dtype and read[name].shape == expected.shape, name
        assert read[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(("dtype", "protocol"), [("float32", 2), ("float16", 4), ("bfloat16", 5)])
def test_a_whole_model_is_read_bit_for_bit(tmp_path, dtype, protocol):
    model = huggingface("ForSemanticSegmentation", width_multiplier=0.25, num_labels=5)
    tensors = model.to(getattr(torch, dtype)).state_dict()
    torch.save(tensors, tmp_path / "pytorch_model.bin", pickle_protocol=protocol)
    read = torch_file.read(tmp_path / "pytorch_model.bin")
    assert_equal(read, tensors)
    assert read["mobilevitv2.conv_stem.normalization.num_batches_tracked"].dtype == np.int64


def test_views_of_one_storage_parameters_and_every_type_are_read(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "base": base,
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        **{
            name: (2 * torch.rand(5)).to(getattr(torch, name))
            for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16")
        },
    }
    torch.save(tensors, tmp_path / "views.pt")
    assert_equal(torch_file.read(tmp_path / "views.pt"), tensors)


def test_a_training_checkpoint_with_its_optimizer_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optim_state_dict": optimizer.state_dict(),
        "best_metric": 0.5,
    }
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert_equal(torch_file.read(tmp_path / "checkpoint.pt"), model.state_dict())


def test_what_torch_itself_would_not_load_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"w": torch.ones(2), "payload": Payload()}, tmp_path / "payload.pt")
    with pytest.raises(WeightsError, match=r"asks for posix\.mkdir"):
        torch_file.read(tmp_path / "payload.pt")
    assert not (tmp_path / "executed").exists()

    torch.save(torch.nn.Conv2d(3, 4, 3), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"asks for torch\.nn\.modules\.conv\.Conv2d"):
        torch_file.read(tmp_path / "module.pt")

    tensors = {"w": torch.ones(2)}
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="before 1.6. Convert it once"):
        torch_file.read(tmp_path / "old.bin")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(WeightsError, match="TorchScript"):
        torch_file.read(tmp_path / "script.pt")
