"""Files of gene vectors: what is written is read, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from scfm.weights.gene_vectors import read_gene_names, read_gene_vectors, vector_size, write_gene_vectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ["ENSG02", "LOC7", "ENSG01", "GeneID_3"]
VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gene_vectors(tmp_path / "a_gene.h5", NAMES, VECTORS)


def test_what_is_written_is_read(path: Path) -> None:
    assert read_gene_names(path) == NAMES
    names, vectors = read_gene_vectors(path)
    assert names == NAMES
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, VECTORS)
    assert vector_size(path) == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_layout_is_the_published_one(path: Path, shared: Path) -> None:
    published = shared / "reference" / "fixtures" / "transcriptformer" / "ood_embedding.h5"
    if not published.exists():
        pytest.skip(f"no {published}")
    with h5py.File(published) as theirs, h5py.File(path) as ours:
        assert list(ours) == list(theirs)
        assert ours["keys"].dtype.kind == theirs["keys"].dtype.kind == "S"
        assert {ours["arrays"][name].dtype for name in NAMES} == {array.dtype for array in theirs["arrays"].values()}
        expected = [name.decode() for name in theirs["keys"][:]]
        values = np.stack([theirs["arrays"][name][:] for name in expected])
    assert read_gene_names(published) == expected
    names, vectors = read_gene_vectors(published)
    assert names == expected
    np.testing.assert_array_equal(vectors, values)


def test_torch_is_not_needed() -> None:
    code = "import sys; sys.modules['torch'] = None; import scfm.weights.gene_vectors, scfm.weights.archive"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i4", "u1"])
def test_any_number_becomes_float32(dtype: str, path: Path) -> None:
    values = np.arange(3).astype(dtype)
    change(path, lambda f: [put(f, f"arrays/{name}", values) for name in NAMES])
    vectors = read_gene_vectors(path)[1]
    assert vectors.dtype == np.float32
    assert (vectors == [0, 1, 2]).all()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (np.array([b"a", b"b", b"a"]), ["a", "b", "a"]),
        (np.array(["\u00e9".encode(), b"x y"]), ["\u00e9", "x y"]),
    ],
    ids=["twice", "utf-8"],
)
def test_names_as_others_write_them(keys: Any, expected: list[str], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["keys"] = keys
    assert read_gene_names(tmp_path / "a.h5") == expected


def test_a_gene_that_is_there_twice_is_read_twice(path: Path) -> None:
    change(path, lambda f: put(f, "keys", np.array([b"LOC7", b"ENSG01", b"LOC7"])))
    names, vectors = read_gene_vectors(path)
    assert names == ["LOC7", "ENSG01", "LOC7"]
    np.testing.assert_array_equal(vectors, VECTORS[[1, 2, 1]])


@pytest.mark.parametrize("read", [read_gene_names, read_gene_vectors, vector_size])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page.*fetch"),
        (b"", "is not an HDF5 file"),
        (b"keys\tvalues\n", "is not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "is not a readable HDF5 file"),
    ],
    ids=["lfs", "page", "empty", "text", "only the mark"],
)
def test_something_else_in_the_place_of_the_file(
    read: Callable[[Path], object], content: bytes, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "b_gene.h5"
    with pytest.raises(FileNotFoundError, match="There is no file .*b_gene.h5"):
        read(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"b_gene.h5 {match}"):
        read(path)
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off(share: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="a_gene.h5 is not a readable HDF5 file .*cut off or damaged"):
        read_gene_names(path)


def put(file: h5py.File, name: str, value: Any) -> None:
    """Put a dataset or a link in the place of something."""
    if name in file:
        del file[name]
    if value is not None:
        file[name] = value


def change(path: Path, how: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        how(file)


def external(file: h5py.File, name: str, dtype: str) -> None:
    """A dataset whose values are the bytes of another file."""
    secret = f"{file.filename}.secret"
    with open(secret, "wb") as other:  # noqa: PTH123
        other.write(bytes(range(65, 89)))
    del file[name]
    file.create_dataset(name, shape=(3,), dtype=dtype, external=[(secret, 0, 24)])


def virtual(file: h5py.File, name: str, dtype: str) -> None:
    """A dataset that is a view of one in another file."""
    with h5py.File(f"{file.filename}.other", "w") as other:
        other.create_dataset("x", data=np.ones(3).astype(dtype))
    layout = h5py.VirtualLayout(shape=(3,), dtype=dtype)
    layout[:] = h5py.VirtualSource(f"{file.filename}.other", "x", shape=(3,))
    del file[name]
    file.create_virtual_dataset(name, layout)


BAD_KEYS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "missing": (lambda f: put(f, "keys", None), "has no /keys; expected keys with gene ids"),
    "two dimensions": (lambda f: put(f, "keys", np.array([[b"a"]])), r"keys has shape \(1, 1\)"),
    "scalar": (lambda f: put(f, "keys", b"a"), r"keys has shape \(\)"),
    "null": (lambda f: put(f, "keys", h5py.Empty("S1")), "keys has shape None"),
    "group": (lambda f: (put(f, "keys", None), f.create_group("keys")), "keys is a Group"),
    "numbers": (lambda f: put(f, "keys", np.arange(3)), "keys holds int64, expected gene ids"),
    "variable length": (
        lambda f: put(f, "keys", np.array(["a", "\u00e9"], dtype=object)),
        "keys holds texts of variable",
    ),
    "references": (lambda f: put(f, "keys", np.array([f.ref], dtype=h5py.ref_dtype)), "keys holds object"),
    "empty": (lambda f: put(f, "keys", np.array([], dtype="S3")), "keys declares 0 ids"),
    "no text": (lambda f: put(f, "keys", np.array([b"a\xff"])), r"keys holds b'a\\xff', which is not text"),
    "empty id": (lambda f: put(f, "keys", np.array([b"a", b""])), "keys holds '' at position 1"),
    "long id": (lambda f: put(f, "keys", np.array([b"a" * 300])), "'aaa.*' at position 0; an id has 1 to 256"),
    "too many": (lambda f: (put(f, "keys", None), f.create_dataset("keys", (5_000_001,), "S1")), "declares 5,000,001"),
    "too large": (lambda f: (put(f, "keys", None), f.create_dataset("keys", (5,), "S99999999")), "5 ids of 99999999"),
    "soft link": (
        lambda f: put(f, "keys", h5py.SoftLink("/other")),
        "keys is a link .SoftLink., which is not followed",
    ),
    "external link": (lambda f: put(f, "keys", h5py.ExternalLink("b.h5", "keys")), "keys is a link .ExternalLink"),
    "external": (lambda f: external(f, "keys", "S8"), "keys keeps its values in other files"),
    "virtual": (lambda f: virtual(f, "keys", "S8"), "keys keeps its values in other files"),
}


@pytest.mark.parametrize("read", [read_gene_names, read_gene_vectors, vector_size])
@pytest.mark.parametrize("kind", BAD_KEYS)
def test_bad_names_are_refused(kind: str, read: Callable[[Path], object], path: Path) -> None:
    how, match = BAD_KEYS[kind]
    change(path, how)
    with pytest.raises(ValueError, match=f"a_gene.h5:? .*{match}"):
        read(path)


BAD_VECTORS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no arrays": (lambda f: put(f, "arrays", None), "has no /arrays; expected"),
    "arrays is none": (lambda f: put(f, "arrays", np.ones(3)), "arrays is not a group"),
    "arrays elsewhere": (lambda f: put(f, "arrays", h5py.ExternalLink("b.h5", "/")), "arrays is a link .ExternalLink"),
    "missing": (lambda f: put(f, "arrays/LOC7", None), "has no /arrays/LOC7"),
    "two dimensions": (lambda f: put(f, "arrays/LOC7", np.ones((3, 1))), r"LOC7 has shape \(3, 1\)"),
    "group": (lambda f: (put(f, "arrays/LOC7", None), f.create_group("arrays/LOC7")), "LOC7 is a Group"),
    "length": (lambda f: put(f, "arrays/LOC7", np.ones(4)), "of LOC7 has length 4, that of ENSG02 3"),
    "first length": (lambda f: put(f, "arrays/ENSG02", np.ones(4)), "of LOC7 has length 3, that of ENSG02 4"),
    "none": (lambda f: put(f, "arrays/ENSG02", np.ones(0)), "of ENSG02 is 0 values"),
    "text": (lambda f: put(f, "arrays/LOC7", np.array([b"1"] * 3)), "of LOC7 is 3 values of .S1, expected numbers"),
    "bool": (lambda f: put(f, "arrays/LOC7", np.ones(3, bool)), "of LOC7 is 3 values of bool"),
    "complex": (lambda f: put(f, "arrays/LOC7", np.ones(3, complex)), "of LOC7 is 3 values of complex128"),
    "nan": (lambda f: put(f, "arrays/LOC7", np.array([0, np.nan, 0])), "of LOC7 holds values that are not finite"),
    "infinite": (lambda f: put(f, "arrays/LOC7", np.array([0, np.inf, 0])), "of LOC7 holds values that are not finite"),
    "too large": (lambda f: put(f, "arrays/LOC7", np.full(3, 1e300)), "of LOC7 holds values that are not finite"),
    "soft link": (lambda f: put(f, "arrays/LOC7", h5py.SoftLink("/arrays/ENSG01")), "LOC7 is a link .SoftLink"),
    "external link": (lambda f: put(f, "arrays/LOC7", h5py.ExternalLink("b.h5", "x")), "LOC7 is a link .ExternalLink"),
    "external": (lambda f: external(f, "arrays/LOC7", "f8"), "LOC7 keeps its values in other files"),
    "virtual": (lambda f: virtual(f, "arrays/LOC7", "f4"), "LOC7 keeps its values in other files"),
    "path": (lambda f: put(f, "keys", np.array([b"LOC7", b"../keys"])), "'../keys' holds '/'"),
    "declared": (
        lambda f: (put(f, "arrays/ENSG02", None), f.create_dataset("arrays/ENSG02", (2 * 10**9,), "f4")),
        "declares 4 vectors of length 2,000,000,000",
    ),
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
def test_bad_vectors_are_refused_where_they_are_read(kind: str, path: Path) -> None:
    how, match = BAD_VECTORS[kind]
    change(path, how)
    with pytest.raises(ValueError, match=f"a_gene.h5:? .*{match}"):
        read_gene_vectors(path)
    assert "LOC7" in read_gene_names(path)


def test_a_file_is_replaced_only_when_asked(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(
        FileExistsError, match="a_gene.h5 exists already; choose another name, or replace a file with overwrite=True"
    ):
        write_gene_vectors(path, ["x"], VECTORS[:1])
    assert path.read_bytes() == before
    write_gene_vectors(path, ["x"], VECTORS[:1], overwrite=True)
    assert read_gene_names(path) == ["x"]
    with pytest.raises(FileExistsError, match="is a folder of something else"):
        write_gene_vectors(path.parent, ["x"], VECTORS[:1], overwrite=True)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        write_gene_vectors(path.parent / "nowhere" / "a.h5", ["x"], VECTORS[:1])


def test_a_failure_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        msg = "disk full"
        raise OSError(msg)

    before = path.read_bytes()
    monkeypatch.setattr(h5py.File, "create_group", fail)
    with pytest.raises(OSError, match="disk full"):
        write_gene_vectors(path, NAMES, VECTORS, overwrite=True)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a", "b", "a"], "'a' occurs twice"),
        (["a", "", "b"], "'' at position 1 cannot be stored"),
        (["a", " ", "b"], "' ' at position 1"),
        (["a", "b/c", "b"], "'b/c' at position 1"),
        ([".", "a", "b"], r"'\.' at position 0"),
        (["a", "b\0", "b"], "at position 1"),
        (["a", "\ud800", "b"], "at position 1"),
        (["a", "b", "\u00e9" * 200], "at position 2"),
        (["a", "b"], "2 gene ids need a matrix of as many rows"),
        ([], "0 gene ids"),
    ],
)
def test_names_that_cannot_be_written(names: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        write_gene_vectors(tmp_path / "a.h5", names, VECTORS[:3])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (np.array([[0, 1], [0, np.nan]]), "1 vectors hold values that are not finite in float32, the first that of b"),
        (np.array([[1e300, 1], [0, np.inf]]), "2 vectors .* the first that of a"),
        (np.ones(2), r"2 gene ids need .* shape \(2,\)"),
        (np.ones((2, 0)), r"shape \(2, 0\)"),
        (np.ones((3, 1)), r"shape \(3, 1\)"),
        (np.ones((2, 1, 1)), r"shape \(2, 1, 1\)"),
    ],
)
def test_vectors_that_cannot_be_written(vectors: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        write_gene_vectors(tmp_path / "a.h5", ["a", "b"], vectors)
    assert not list(tmp_path.iterdir())
