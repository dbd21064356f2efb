"""Batches shared by several networks, and outputs that land later."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm._types import TokenBatch
from scfm.run.transfer import HostCopy
from tests.rounding import close

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _small_batches() -> Iterator[None]:
    scfm.settings.batch_tokens = 2000
    # what other libraries did to the threads of this thread alone must not decide on the last bits
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    scfm.settings.reset()


def test_every_cell_gets_what_one_device_gives() -> None:
    adata, model = scfm.datasets.pbmc68k(), scfm.model.load("scfm-mini")
    expected = model.embed(adata, device="cpu")
    np.testing.assert_array_equal(model.embed(adata, device=["cpu", "cpu", "cpu"]), expected)
    scfm.tl.embed(adata, model, device=["cpu", torch.device("cpu")])
    np.testing.assert_array_equal(adata.obsm["X_scfm_mini"], expected)
    assert adata.uns["scfm_mini"]["params"]["device"] == "cpu, cpu"


def test_stores_are_filled_by_several_devices(tmp_path: Path) -> None:
    adata = scfm.datasets.pbmc68k()
    adata.write_h5ad(tmp_path / "a.h5ad")
    one, two = (
        scfm.tl.embed_store(tmp_path / "a.h5ad", "scfm-mini", tmp_path / f"{n}.zarr", device=device, shard_rows=64)
        for n, device in enumerate(("cpu", ["cpu", "cpu"]))
    )
    np.testing.assert_array_equal(ad.read_zarr(one).obsm["X_scfm_mini"], ad.read_zarr(two).obsm["X_scfm_mini"])


def test_all_networks_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = scfm.model.load("scfm-mini"), set()
    together, forward = threading.Barrier(2, timeout=30), type(model).forward

    def spy(self: Any, network: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        if (threading.get_ident(), id(network)) not in threads:
            threads.add((threading.get_ident(), id(network)))
            together.wait()  # breaks if one network had all the batches
        return forward(self, network, *arguments)

    monkeypatch.setattr(type(model), "forward", spy)
    model.embed(scfm.datasets.pbmc68k(), device=["cpu", "cpu"])
    assert len({thread for thread, _ in threads}) == len({network for _, network in threads}) == 2


def test_an_error_of_one_network_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scfm.model.load("scfm-mini")

    def fail(*_: Any) -> torch.Tensor:
        msg = "device lost"
        raise RuntimeError(msg)

    monkeypatch.setattr(type(model), "forward", fail)
    with pytest.raises(RuntimeError, match="device lost"):
        model.embed(scfm.datasets.pbmc68k(), device=["cpu", "cpu"])


def test_no_device() -> None:
    adata, model = scfm.datasets.pbmc68k()[:5].copy(), scfm.model.load("scfm-mini")
    with pytest.raises(ValueError, match=r"device=\[\]: several devices must be of one kind"):
        model.embed(adata, device=[])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cuda_devices() -> None:
    adata, model = scfm.datasets.pbmc68k(), scfm.model.load("scfm-mini")
    one = model.embed(adata, device="cuda:0", dtype="float32")
    close(model.embed(adata, device=["cuda:0", "cuda:1"], dtype="float32"), one)


def batch(n_cells: int) -> TokenBatch:
    return TokenBatch(np.arange(n_cells), np.ones(2 * n_cells, np.int64), np.full(n_cells, 2))


def test_an_output_of_the_cpu_is_there_at_once() -> None:
    output = torch.ones(3, 4)
    pending = HostCopy(batch(3), output)
    assert pending.is_ready
    assert pending.wait() is output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_output_of_a_gpu_lands_on_the_host() -> None:
    output = torch.randn(3, 4, device="cuda", dtype=torch.bfloat16)
    pending = HostCopy(batch(3), output)
    assert not pending.is_ready
    assert pending.wait().device.type == "cpu"
    assert torch.equal(pending.wait(), output.cpu())
    assert HostCopy(batch(2), output).is_ready  # states of tokens stay where they are


def test_processes_of_a_machine_take_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from scfm.run.device import local_device

    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device() is None
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device() == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() is None
