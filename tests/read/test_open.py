"""Which matrix is chosen, and what is said about it."""

from __future__ import annotations

import itertools
import logging
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scfm.read import open_counts
from scfm.read._anndata import matrix_of
from scfm.read.arrays import H5Array

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:From 0.4:FutureWarning")


@pytest.fixture
def lognorm(x: np.ndarray) -> np.ndarray:
    return np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4)


@pytest.fixture(params=["memory", "path", "backed"])
def via(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Pass an AnnData on as it is, as a path, or backed."""
    kind, opened = request.param, []

    def put(adata: ad.AnnData) -> Any:
        if kind == "memory":
            return adata
        adata.write_h5ad(tmp_path / "a.h5ad")
        if kind == "backed":
            opened.append(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"))
            return opened[0]
        return tmp_path / "a.h5ad"

    yield put
    for adata in opened:
        adata.file.close()


def test_normalised_x_names_layer_and_raw(via: Any, build: Callable[..., ad.AnnData], lognorm: np.ndarray) -> None:
    data = via(build(values=lognorm))
    with pytest.warns(UserWarning, match="not counts") as caught, open_counts(data, use_raw=False) as source:
        assert source.matrix == "X"
    (warning,) = caught
    text = str(warning.message)
    assert "log-transformed" in text
    assert "layer='counts' (layers['counts'])" in text
    assert "use_raw=True (raw.X)" in text
    assert warning.filename == __file__


def test_raw_is_found_and_told(
    via: Any, build: Callable[..., ad.AnnData], lognorm: np.ndarray, raw_x: np.ndarray
) -> None:
    data = via(build(values=lognorm))
    with pytest.warns(UserWarning, match=r"X holds log-.* values; reading raw\.X, which holds counts") as caught:
        source = open_counts(data)
    assert [warning.filename for warning in caught] == [__file__]
    with source:
        assert source.matrix == "raw.X"
        np.testing.assert_array_equal(source.read(0, 23).totals, raw_x.sum(axis=1))


def test_counts_in_x_are_taken_in_silence(
    via: Any, build: Callable[..., ad.AnnData], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="scfm"), open_counts(via(build())) as source:
        assert source.matrix == "X"
    assert not caplog.records


@pytest.mark.parametrize("raw", [False, True])
def test_the_one_layer_that_holds_counts_is_read(
    raw: bool, via: Any, build: Callable[..., ad.AnnData], lognorm: np.ndarray
) -> None:
    adata = build(values=lognorm, raw=False)
    adata.layers["scaled"] = lognorm - 1
    if raw:  # of no use
        adata.raw = adata.copy()
    with pytest.warns(UserWarning, match=r"X holds log-.* values; reading layers\['counts'\].*use_raw=False reads X"):
        source = open_counts(via(adata))
    with source:
        assert source.matrix == "layers['counts']"
        np.testing.assert_array_equal(source.read(0, 23).totals, adata.layers["counts"].sum(axis=1).A1)


def test_counts_of_a_layer_stand_for_an_x_of_zeros(build: Callable[..., ad.AnnData], x: np.ndarray) -> None:
    adata = build(values=np.zeros_like(x), raw=False, layer=False)
    assert open_counts(adata).element.name == "X"
    adata.layers["empty"] = np.zeros_like(x)
    adata.layers["spliced"] = x
    with pytest.warns(UserWarning, match=r"X holds only zeros; reading layers\['spliced'\]"):
        assert open_counts(adata).element.layer == "spliced"


def test_several_layers_that_hold_counts_are_named(build: Callable[..., ad.AnnData], lognorm: np.ndarray) -> None:
    adata = build(values=lognorm, raw=False)
    adata.layers["spliced"] = adata.layers["counts"]
    with pytest.raises(ValueError, match="several layers hold counts: pass layer='counts' or layer='spliced'"):
        open_counts(adata)


def test_some_of_the_counts_are_not_the_counts(build: Callable[..., ad.AnnData], lognorm: np.ndarray) -> None:
    adata = build(values=lognorm, raw=False, layer=False)
    adata.layers["ambiguous"] = np.ones(adata.shape)
    with pytest.warns(UserWarning, match="Neither X, nor a layer, nor raw"):
        assert open_counts(adata).matrix == "X"


def test_raw_comes_before_layers(build: Callable[..., ad.AnnData], lognorm: np.ndarray) -> None:
    adata = build(values=lognorm)
    adata.layers["spliced"] = adata.layers["counts"]
    with pytest.warns(UserWarning, match=r"reading raw\.X"):
        assert open_counts(adata).matrix == "raw.X"


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_one_wrong_value_among_counts(value: float, build: Callable[..., ad.AnnData], x: np.ndarray) -> None:
    x[5, 2] = value
    adata = build(values=x, raw=False, layer=False)
    with pytest.raises(ValueError, match=r"cell 'cell5' \(row 5\), gene 'gene2'.*The other values are counts"):
        open_counts(adata)
    x[6, 2] = 0.5
    with pytest.raises(ValueError, match="Neither X, nor a layer, nor raw"):
        open_counts(build(values=x, raw=False, layer=False))


def test_no_counts_at_all(build: Callable[..., ad.AnnData], lognorm: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="Neither X, nor a layer, nor raw holds integers"):
        open_counts(build(values=lognorm, raw=False, layer=False))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (lambda x: np.log1p(x), r"log-transformed values \(the largest of the sample is 1\.\d"),
        (lambda x: x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4, "values normalised to 10000 in each cell"),
        (lambda x: x * 100.5, "values with fractions"),
        (
            lambda x: np.where(np.arange(x.shape[1]) % 3, x, x * 1.3),
            r"mostly whole numbers \(\d+% of the values have fr",
        ),
    ],
)
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_what_the_values_look_like(
    values: Callable[[np.ndarray], np.ndarray], text: str, form: str, build: Callable[..., ad.AnnData], x: np.ndarray
) -> None:
    with pytest.warns(UserWarning, match=text):
        open_counts(build(form, values=values(x), raw=False, layer=False))


def test_explicit_choices_are_judged_too(build: Callable[..., ad.AnnData], lognorm: np.ndarray) -> None:
    adata = build()
    adata.layers["log"] = lognorm
    adata.raw = ad.AnnData(lognorm, obs=adata.obs, var=adata.var)
    with pytest.warns(
        UserWarning, match=r"layers\['log'\] of AnnData holds log.*use_raw=False \(X\) or layer='counts'"
    ):
        assert open_counts(adata, layer="log").matrix == "layers['log']"
    for options in ({"use_raw": True}, {"prefer_raw": True}):
        with pytest.warns(UserWarning, match=r"raw\.X of AnnData holds log"):
            assert open_counts(adata, **options).matrix == "raw.X"


def test_prefer_raw(build: Callable[..., ad.AnnData]) -> None:
    assert open_counts(build(), prefer_raw=True).matrix == "raw.X"
    assert open_counts(build(raw=False), prefer_raw=True).matrix == "X"
    assert open_counts(build(), prefer_raw=True, use_raw=False).matrix == "X"
    assert open_counts(build(), prefer_raw=True, layer="counts").matrix == "layers['counts']"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -2.0])
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("where", [0, 999, 1999])
def test_impossible_values(value: float, form: str, where: int) -> None:
    values = np.ones((2000, 6), dtype=np.float32)
    values[where, 4] = value
    to = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[form]
    adata = ad.AnnData(to(values), obs=pd.DataFrame(index=[f"c{i}" for i in range(2000)]))
    adata.var_names = list("ABCDEF")
    adata.layers["counts"] = np.ones((2000, 6))
    message = rf"X of AnnData holds {value:g} for cell 'c{where}' \(row {where}\), gene 'E'.*pass layer='counts'"
    with pytest.raises(ValueError, match=message):
        open_counts(adata, use_raw=False)
    with pytest.warns(UserWarning, match=rf"X holds the value {value:g}; reading layers\['counts'\]"):
        assert open_counts(adata).n_obs == 2000


def test_impossible_values_of_a_view(build: Callable[..., ad.AnnData], x: np.ndarray) -> None:
    x[5, 2] = -1
    adata = build(values=x, raw=False, layer=False)
    assert open_counts(adata[6:]).n_obs == 17
    assert open_counts(adata[:, 3:]).n_vars == 8
    with pytest.raises(ValueError, match=r"cell 'cell5' \(row 1\), gene 'gene2'"):
        open_counts(adata[[6, 5], ::-1])


def test_scaled_x_gives_way_to_raw(build: Callable[..., ad.AnnData], x: np.ndarray) -> None:
    with pytest.warns(UserWarning, match=r"X holds the value -0\.5; reading raw\.X"):
        assert open_counts(build("dense", values=x - 0.5)).matrix == "raw.X"


def test_the_sample_is_small(x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ad.AnnData(sparse.csr_matrix(np.ones((5000, 3), dtype=np.float32))).write_h5ad(tmp_path / "a.h5ad")
    read, fill = [0], H5Array.fill

    def spy(self: H5Array, out: np.ndarray, start: int) -> None:
        fill(self, out, start)
        read[0] += len(out) if self._array.name == "/X/data" else 0

    monkeypatch.setattr(H5Array, "fill", spy)
    open_counts(tmp_path / "a.h5ad").close()
    assert read == [3 * 256 * 3]


# what is missing, unknown, or contradictory


def test_missing_layer(via: Any, build: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(ValueError, match=r"no layer 'spliced'\. Its layers: 'counts'\."):
        open_counts(via(build()), layer="spliced")


def test_no_layers(via: Any, build: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(ValueError, match=r"no layer 'counts'\. Its layers: none\."):
        open_counts(via(build(layer=False)), layer="counts")


def test_layer_and_raw(build: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(ValueError, match=r"layer='counts' and use_raw=True"):
        open_counts(build(), layer="counts", use_raw=True)
    assert open_counts(build(), layer="counts", use_raw=False).matrix == "layers['counts']"


def test_missing_raw(via: Any, build: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(ValueError, match=r"has no raw\. It has: X \(use_raw=False\), layers\['counts'\] \(layer='coun"):
        open_counts(via(build(raw=False)), use_raw=True)


@pytest.mark.parametrize("on_disk", [False, True])
def test_missing_x(on_disk: bool, layer_x: np.ndarray, tmp_path: Path) -> None:
    adata = ad.AnnData(layers={"counts": layer_x}, obs=pd.DataFrame(index=[f"c{i}" for i in range(23)]))
    if on_disk:
        adata.write_h5ad(tmp_path / "a.h5ad")
    data = tmp_path / "a.h5ad" if on_disk else adata
    with pytest.raises(ValueError, match=r"no X \(it is None\)\. It has: layers\['counts'\] \(layer='counts'\)"):
        open_counts(data, use_raw=False)
    with pytest.warns(UserWarning, match=r"X is None; reading layers\['counts'\]"):
        source = open_counts(data)
    with source:
        np.testing.assert_array_equal(source.read(0, 23).totals, layer_x.sum(axis=1))


def mudata(build: Callable[..., ad.AnnData]) -> md.MuData:
    adt = build()[:5].copy()
    adt.var_names = [f"adt{i}" for i in range(adt.n_vars)]
    return md.MuData({"rna": build(), "adt": adt})


@pytest.mark.parametrize("on_disk", [False, True])
def test_modality(on_disk: bool, build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    data = mudata(build)
    if on_disk:
        data.write_h5mu(tmp_path / "a.h5mu")
        data = tmp_path / "a.h5mu"
    with pytest.raises(ValueError, match=r"needs modality=\. Its modalities: 'rna', 'adt'|'adt', 'rna'"):
        open_counts(data)
    with pytest.raises(ValueError, match=r"no modality 'atac'\. Its modalities: "):
        open_counts(data, modality="atac")
    with open_counts(data, modality="adt") as source:
        assert source.n_obs == 5


def test_modality_of_an_anndata(via: Any, build: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(ValueError, match=r"modality='rna' is for a MuData"):
        open_counts(via(build()), modality="rna")


@pytest.mark.parametrize(
    ("data", "name"),
    [(np.ones((2, 3)), "numpy.ndarray"), (pd.DataFrame(), "DataFrame"), (None, "NoneType"), ([], "list"), (3, "int")],
)
def test_other_objects(data: Any, name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"{name}\. Accepted: an AnnData, a MuData with modality=, or the path"
    ) as caught:
        open_counts(data)
    assert ("anndata.AnnData(X=" in str(caught.value)) == hasattr(data, "shape")


def test_paths_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '.*absent\.h5ad'\. Accepted"):
        open_counts(tmp_path / "absent.h5ad")
    (tmp_path / "text.h5ad").write_text("cell,gene")
    with pytest.raises(ValueError, match=r"text\.h5ad' is no HDF5 file\. Accepted"):
        open_counts(tmp_path / "text.h5ad")
    for name, start, program in (("a.h5ad.gz", b"\x1f\x8b\x08", "gunzip"), ("a.zarr.zip", b"PK\x03\x04", "unzip")):
        (tmp_path / name).write_bytes(start + bytes(100))
        with pytest.raises(ValueError, match=rf"{name}' is no HDF5 file\. It is compressed: .*{program} first\."):
            open_counts(tmp_path / name)
    with pytest.raises(ValueError, match=r"with neither a zarr store nor a matrix\.mtx\. Accepted"):
        open_counts(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["matrix"] = np.ones(3)
    with pytest.raises(ValueError, match=r"other\.h5 holds no cells × genes.*\['matrix'\]"):
        open_counts(tmp_path / "other.h5")


@pytest.mark.parametrize("options", [{"layer": "absent"}, {"modality": "rna"}])
def test_a_refused_file_is_closed(options: Any, build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    build().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="no layer|modality") as caught:
        open_counts(tmp_path / "a.h5ad", **options)
    h5py.File(tmp_path / "a.h5ad", "r+").close()  # impossible while it is open for reading
    assert caught.value  # the traceback keeps the file object alive until here


def test_a_truncated_file(build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    build().write_h5ad(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"a\.h5ad' cannot be opened: .*truncated.*It may be damaged"):
        open_counts(path)


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        *itertools.product(["h5ad", "backed", "h5mu"], ["X", "raw.X", "layers['counts']"]),
        ("zarr", "layers['counts']"),
        ("mudata zarr", "raw.X"),
    ],
)
def test_columns_on_disk(kind: str, element: str, build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    adata, modality = build("csc"), None
    path = tmp_path / f"a.{kind.split()[-1].replace('backed', 'h5ad')}"
    if kind == "zarr":
        adata.write_zarr(path)
    elif "mu" in kind:
        both, modality = md.MuData({"rna": adata}), "rna"
        both.write_zarr(path) if "zarr" in kind else both.write_h5mu(path)
    else:
        adata.write_h5ad(path)
    options: dict[str, Any] = {"X": {}, "raw.X": {"use_raw": True}, "layers['counts']": {"layer": "counts"}}[element]
    if kind == "backed":
        data: Any = ad.read_h5ad(path, backed="r")
        if element.startswith("layers"):  # anndata has loaded them
            assert open_counts(data, **options).n_obs == 23
            data.file.close()
            return
    else:
        data = path
    with pytest.raises(ValueError, match=r"is stored by columns \(CSC\)") as caught:
        open_counts(data, modality=modality, **options)
    text = str(caught.value)
    assert text.startswith(f"{element} of {path} ")
    if kind == "backed":
        data.file.close()
    exec("\n".join(line.strip() for line in text.splitlines() if line.startswith("    ")), {})
    modality = modality if kind == "h5mu" else None
    with open_counts(path.with_stem("a_csr"), modality=modality, **options) as source:
        assert source.matrix == element
    assert path.exists()


def test_columns_on_disk_are_no_advice(build: Callable[..., ad.AnnData], lognorm: np.ndarray, tmp_path: Path) -> None:
    adata = build(values=lognorm, raw=False)
    adata.layers["by column"] = sparse.csc_matrix(adata.layers["counts"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(UserWarning, match=r"pass layer='counts' \(layers\['counts'\]\)\.$"):
        open_counts(tmp_path / "a.h5ad", use_raw=False).close()


@pytest.mark.parametrize(
    ("package", "remedy"),
    [
        ("cupy", r"rapids_singlecell\.get\.anndata_to_CPU"),
        ("cupyx.scipy.sparse", r"rapids_singlecell\.get\.anndata_to_CPU"),
        ("torch", r"matrix\.cpu\(\)\.numpy\(\)"),
        ("jaxlib.xla_extension", r"numpy\.asarray"),
    ],
)
def test_arrays_that_are_elsewhere(package: str, remedy: str) -> None:
    array = type("Array", (), {"__module__": package, "shape": (23, 11)})()
    with pytest.raises(TypeError, match=rf"layers\['gpu'\] of AnnData is a .*{remedy}"):
        matrix_of(array, "layers['gpu']", "AnnData")


@pytest.mark.parametrize("array", [np.ones((3, 2, 2)), np.ones(3), np.ma.masked_array(np.ones((3, 2))), pd.DataFrame()])
def test_arrays_of_other_kinds(array: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"X of AnnData is a {type(array).__name__} of . dimensions; a 2-D numpy array"
    ):
        matrix_of(array, "X", "AnnData")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_other_sparse_formats(x: np.ndarray) -> None:
    for matrix in (sparse.coo_matrix(x), sparse.lil_array(x), sparse.dia_array(x)):
        parts = matrix_of(matrix, "X", "AnnData").take(range(2, 9))
        dense = sparse.csr_array((parts.data, parts.indices, parts.indptr), shape=(7, 11)).toarray()
        np.testing.assert_array_equal(dense, x[2:9])
    np.testing.assert_array_equal(matrix_of(np.matrix(x), "X", "AnnData").take(range(1, 2)).data, x[1][x[1] > 0])


def test_mudata_need_not_be_installed(build: Callable[..., ad.AnnData], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mudata")
    assert open_counts(build()).n_obs == 23
    monkeypatch.setitem(sys.modules, "mudata", types.SimpleNamespace(MuData=md.MuData))
    with pytest.raises(ValueError, match="needs modality="), warnings.catch_warnings(action="ignore"):
        open_counts(md.MuData({"rna": build()}))
