from __future__ import annotations

import pytest
import torch

import scfm
from scfm.run.device import default_batch_tokens, resolve_device, resolve_dtype


def test_cpu_defaults() -> None:
    cpu = resolve_device("cpu")
    assert resolve_dtype(None, cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == resolve_dtype(torch.bfloat16, cpu) == torch.bfloat16


def test_settings_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scfm.settings, "device", "cpu")
    monkeypatch.setattr(scfm.settings, "batch_tokens", 77)
    assert resolve_device(None) == torch.device("cpu")
    assert default_batch_tokens(torch.device("cpu")) == 77


@pytest.mark.parametrize(("device", "words"), [("gpu", "not a torch device"), ("cuda:99", "cannot be used here")])
def test_devices_that_are_not_there(device: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_device(device)


def test_dtypes_that_are_not_supported() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        resolve_dtype("int8", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cuda_equals_cpu(dtype: str) -> None:
    adata = scfm.datasets.pbmc68k()[:64].copy()
    model = scfm.model.load("scfm-mini")
    expected = model.embed(adata, device="cpu")
    found = model.embed(adata, device="cuda", dtype=dtype)
    cosine = (expected * found).sum(1) / ((expected**2).sum(1) * (found**2).sum(1)) ** 0.5
    assert cosine.min() > (1 - 1e-6 if dtype == "float32" else 0.995)
