import h5py
import numpy as np
import pytest
import torch

from petomo.core.errors import UserError
from petomo.io.checkpoint import load_checkpoint, save_checkpoint


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.contiguous().numpy().tobytes() == b.resolve_conj().contiguous().numpy().tobytes()
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    else:
        assert repr(a) == repr(b)


def test_everything_comes_back_bit_for_bit(tmp_path):
    nan = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)  # a NaN with a payload
    state = {
        "volume": torch.randn(3, 4, 5, dtype=torch.complex64).transpose(0, 2),
        "conjugate": torch.randn(3, dtype=torch.complex128).conj(),
        "double": torch.randn(2, dtype=torch.float64),
        "nan": torch.cat([nan, -torch.zeros(1)]),
        "int": torch.arange(3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "nested": {0: [1, 0.1, None, True, "a/b", [], {}], "k/z .": (1, (2.5,))},
        "big": 2**70,
        "inf": float("inf"),
        "text": "µ" * 100_000,
    }
    save_checkpoint(tmp_path / "c.h5", state)
    same(load_checkpoint(tmp_path / "c.h5"), state)


def test_optimiser_state_continues_exactly(tmp_path):
    def steps(parameter, optimiser, count):
        for _ in range(count):
            optimiser.zero_grad()
            (parameter**4).sum().backward()
            optimiser.step()

    a = torch.tensor([1.0, -2.0], requires_grad=True)
    first = torch.optim.Adam([a], lr=0.1)
    steps(a, first, 3)
    save_checkpoint(tmp_path / "c.h5", {"a": a, "adam": first.state_dict()})
    steps(a, first, 4)
    content = load_checkpoint(tmp_path / "c.h5")
    b = content["a"].requires_grad_()
    second = torch.optim.Adam([b], lr=0.1)
    second.load_state_dict(content["adam"])
    steps(b, second, 4)
    assert torch.equal(a, b)


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "c.h5"
    save_checkpoint(path, {"iteration": 1})
    with pytest.raises(TypeError, match="cannot hold a object"):
        save_checkpoint(path, {"iteration": 2, "bad": object()})
    with pytest.raises(TypeError, match="keys are strings or integers"):
        save_checkpoint(path, {(1, 2): 3})
    assert load_checkpoint(path) == {"iteration": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["c.h5"]


def test_unusable_checkpoints_are_sentences(tmp_path):
    path = tmp_path / "c.h5"
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)
    with h5py.File(path, "w") as file:
        file.attrs["petomo_checkpoint"] = 99
    with pytest.raises(UserError, match="version 99"):
        load_checkpoint(path)
