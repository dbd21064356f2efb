"""Names of results are judged once, the same for memory, h5ad and zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

from scfm._keys import check_key, check_own, made_by

if TYPE_CHECKING:
    from pathlib import Path

GOOD = ("X_scfm", "with space", "a.b", "ключ", "T-cells (CD4+)", "_x", "é" * 100, "c", "0")
BAD = (
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "/",
    "a\\b",
    "a\0b",
    "a\nb",
    " a",
    "a ",
    "__a",
    "_index",
    "zarr.json",
    "\ud800",
    "é" * 101,
)


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:.*zarr:UserWarning")  # of the format, by anndata
def test_good_names_come_back(key: str, suffix: str, tmp_path: Path) -> None:
    check_key(key)
    adata = ad.AnnData(np.ones((2, 1), np.float32), obsm={key: np.ones((2, 3))}, uns={key: {"params": {"a": 1}}})
    adata.obs[key] = [1, 2]
    path = tmp_path / f"a.{suffix}"
    adata.write_h5ad(path) if suffix == "h5ad" else adata.write_zarr(path)
    found = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    assert (list(found.obsm), list(found.uns), list(found.obs)) == ([key], [key], [key])


@pytest.mark.parametrize("key", BAD)
def test_bad_names(key: str) -> None:
    with pytest.raises(
        ValueError, match=r"^key_added='.*' cannot be stored: give a name of at most 200 bytes without '/'"
    ):
        check_key(key)


@pytest.mark.parametrize("key", [5, b"a", ["a"], None, True])
def test_names_are_text(key: Any) -> None:
    with pytest.raises(TypeError, match="key_added must be a string, got"):
        check_key(key)


def test_functions_know_their_results() -> None:
    check_own("embed", ["obsm['a']"], {"params": made_by("embed")})
    for other in (None, 1, {}, {"params": 1}, {"params": {}}, {"params": made_by("score")}, made_by("embed")):
        check_own("embed", [], other)
        with pytest.raises(
            ValueError, match=r"would overwrite obsm\['a'\] and uns\['b'\], which scfm.tl.embed did not write"
        ):
            check_own("embed", ["obsm['a']", "uns['b']"], other)
