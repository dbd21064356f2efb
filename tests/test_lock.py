"""Processes keep out of each other's way, and file systems without locks are told of."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

import scfm
from scfm._lock import hold

if TYPE_CHECKING:
    from pathlib import Path


def test_one_at_a_time(tmp_path: Path) -> None:
    with hold(tmp_path / "a"), pytest.raises(TimeoutError):
        hold(tmp_path / "a", 0)
    held = hold(tmp_path / "a", 0)
    held.close()
    hold(tmp_path / "a", 0).close()


@pytest.mark.skipif(sys.platform == "win32", reason="locks files in another way")
def test_without_locks_there_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    scfm.datasets.pbmc68k()[:20].copy().write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr("fcntl.flock", no_lock)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        out = scfm.tl.embed_store(tmp_path / "a.h5ad", "scfm-mini", tmp_path / "out.zarr", shard_rows=5)
    ours = [str(one.message) for one in caught if issubclass(one.category, UserWarning) and "locks" in str(one.message)]
    assert len(ours) == 1
    assert "has no locks: do not let two processes write there at the same time" in ours[0]
    assert scfm.run.store.ShardStore.open(out).missing() == []


def test_hdf5_without_locks_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "Unable to synchronously open file (unable to lock file)")

    scfm.datasets.pbmc68k()[:2].copy().write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr("h5py.File", no_lock)
    with pytest.raises(
        OSError, match=r"a\.h5ad' cannot be opened.* set HDF5_USE_FILE_LOCKING=FALSE in the environment"
    ):
        scfm.model.load("scfm-mini").embed(tmp_path / "a.h5ad")
