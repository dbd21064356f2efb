"""Every bad file gives one clear error, nothing in it runs, and a failed conversion leaves nothing behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scfm
from scfm.weights.pickles import read_dictionary

from .faulty import N_GENES, refused

if TYPE_CHECKING:
    from collections.abc import Callable

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 41234\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Too many requests</body></html>"
TABLES = ("token_dictionary", "gene_median_dictionary", "ensembl_mapping_dict", "gene_name_id_dict")


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.parts


def attacks(marker: Path) -> dict[str, Any]:
    """Objects that would make ``marker`` when they are unpickled without care."""
    command = f"touch {marker}"
    call = Call(os.system, command)
    array = np.empty(1, dtype=object)
    array[0] = call
    scalar = np.dtype("f8").type(1).__reduce__()[0]
    return {
        "os.system": call,
        "eval": Call(eval, f"__import__('os').system({command!r})"),
        "exec": Call(exec, f"import os; os.system({command!r})"),
        "nested": {"a": {"b": [call]}},
        "value": {"ENSG00000000001": call},
        "key": {Call(os.system, command): 1},
        "object array": array,
        "object scalar": {"a": Call(scalar, np.dtype("O"), call)},
        "object scalar bytes": {"a": Call(scalar, np.dtype("O"), pickle.dumps(call))},
        "import": Call(__import__, "this"),
        "subprocess": Call(subprocess.call, command, 0, None, None, None, None, None, True, True),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", attacks(Path()))
def test_no_pickle_runs_anything(kind: str, protocol: int, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps(attacks(marker)[kind], protocol=protocol)
    if kind == "os.system":
        pickle.loads(data)  # it would work
        assert marker.exists()
        marker.unlink()
    folder = folder_of("published")
    (folder / "token_dictionary_gctiny.pkl").write_bytes(data)
    for use in (scfm.model.load, lambda source: scfm.model.convert(source, tmp_path / "out")):
        with pytest.raises(
            ValueError, match=r"token_dictionary_gctiny.pkl is not a readable pickle .*(nothing was run|numpy)"
        ):
            use(folder)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_are_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for kind, values in (
        (float, {"a": np.float64(0.1), "b": np.float32(0.5), "c": 2.5}),
        (int, {"a": np.int64(-(2**40)), "b": np.uint8(200), "c": 3}),
        (str, {"a": np.str_("x"), "b": "\u00e9"}),
    ):
        path.write_bytes(pickle.dumps(values, protocol=protocol))
        found = read_dictionary(path, kind)
        assert found == values
        assert {type(value) for value in found.values()} == {kind}


def test_a_pickle_cannot_change_its_reader(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever is on the stack, such as the defaults of a function that was found."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"c_codecs\nencode\n(N}S'__defaults__'\n(S'rot13'\ntstb0}.")
    with suppress(ValueError):
        read_dictionary(path)
    path.write_bytes(b"}S'a'\nc_codecs\nencode\n(S'x'\ntRs.")
    assert read_dictionary(path) == {"a": b"x"}


def test_a_small_pickle_gives_a_small_message(tmp_path: Path) -> None:
    """Lists of the same lists are small in the file and endless when they are printed."""
    value: list[Any] = []
    for _ in range(20):
        value = [value, value]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": value}))
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match="Is it another dictionary") as error:
        read_dictionary(path, int)
    assert len(str(error.value)) < 2000


def test_a_small_pickle_takes_little_memory(tmp_path: Path) -> None:
    """One opcode may ask for a memo of any size."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"}r\x00\x00\x40\x00.")
    tracemalloc.start()
    with suppress(ValueError):
        read_dictionary(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


BAD_TABLES: dict[str, tuple[bytes, str]] = {
    "LFS": (LFS, "is a git-lfs pointer.*git lfs pull"),
    "page": (PAGE, "is not a readable pickle"),
    "empty": (b"", "is not a readable pickle"),
    "list": (pickle.dumps(["a"]), "holds a list, expected a dictionary"),
    "no strings": (pickle.dumps({1: 2}), "holds 1: 2; expected strings"),
    "bool": (pickle.dumps({"a": True}), "holds 'a': True; expected strings"),
    "bytes": (pickle.dumps({"a": b"1"}), "holds 'a': b'1'; expected strings"),
    "subclass": (b"ccollections\nOrderedDict\n)R.", "is not a readable pickle .*it asks for collections.OrderedDict"),
    "persistent": (b"Pid\n.", "is not a readable pickle .*it refers to objects outside"),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_dictionary_is_named(kind: str, table: str, folder_of: Callable[[str], Path]) -> None:
    content, match = BAD_TABLES[kind]
    folder = folder_of("published")
    (folder / f"{table}_gctiny.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=f"{table}_gctiny.pkl {match}"):
        scfm.model.load(folder)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_pickle(share: float, folder_of: Callable[[str], Path]) -> None:
    path = folder_of("published") / "token_dictionary_gctiny.pkl"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="token_dictionary_gctiny.pkl is not a readable pickle"):
        scfm.model.load(path.parent)


def test_dictionaries_of_another_model(sources: dict[str, Path], folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="14 tokens, but token_dictionary_gctiny.pkl has 16 tokens.*gc30M.*gc104M"):
        scfm.model.load(sources["v1"], dictionaries=sources["published"])
    with pytest.raises(ValueError, match="belong to another model.*dictionaries="):
        scfm.model.convert(sources["published"], "never", dictionaries=[*sources["v1"].glob("*.pkl")])
    assert not Path("never").exists()
    with pytest.raises(FileNotFoundError, match=r"dictionaries= names .*nowhere, which does not exist"):
        scfm.model.load(sources["v1"], dictionaries="nowhere")


@pytest.mark.parametrize("missing", [TABLES[:1], TABLES[1:2], TABLES])
def test_missing_dictionaries_are_named(missing: tuple[str, ...], folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("published")
    for table in missing:
        (folder / f"{table}_gctiny.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"token_dictionary\*.pkl and gene_median.*dictionaries="):
        scfm.model.load(folder)


@pytest.mark.parametrize("median", [0.0, -1.0, np.nan, np.inf, None])
def test_medians_are_positive_and_complete(median: float | None, folder_of: Callable[[str], Path]) -> None:
    path = folder_of("published") / "gene_median_dictionary_gctiny.pkl"
    medians = pickle.loads(path.read_bytes())
    medians["ENSG00000000003"] = median
    if median is None:
        del medians["ENSG00000000003"]
    path.write_bytes(pickle.dumps(medians))
    with pytest.raises(ValueError, match=r"ENSG00000000003"):
        scfm.model.load(path.parent)


class Spy:
    """A tensor file that asks for code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_bin_is_refused(legacy: bool, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder, marker = folder_of("bin"), tmp_path / "marker"
    content = {"bert.pooler.dense.bias": torch.zeros(8), "x": Spy(marker)}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"pytorch_model.bin was refused .*cut off, or holds more than tensors"):
        scfm.model.load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(2)}, torch.zeros(2)], ids=str)
def test_a_bin_that_is_no_state_dict(content: Any, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("bin")
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds no plain state dict"):
        scfm.model.load(folder)


@pytest.mark.parametrize("kind", ["published", "bin", "converted"])
@pytest.mark.parametrize("position", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights(kind: str, position: float, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(kind)
    path = folder / ("pytorch_model.bin" if kind == "bin" else "model.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: position if isinstance(position, int) else int(position * len(content))])
    with pytest.raises(ValueError, match=rf"{path.name} .*cut off"):
        scfm.model.load(folder)


@pytest.mark.parametrize("kind", ["published", "bin", "converted"])
@pytest.mark.parametrize(("content", "match"), [(LFS, "git-lfs pointer.*git lfs pull"), (PAGE, "web page.*fetch")])
def test_something_else_in_the_place_of_weights(
    kind: str, content: bytes, match: str, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(kind)
    path = folder / ("pytorch_model.bin" if kind == "bin" else "model.safetensors")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is a {match}"):
        scfm.model.load(folder)


CHANGED_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), r"1 missing: bert.encoder.layer.1.output"),
    "unexpected": (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
    "one layer more": (
        lambda t: t.update({"bert.encoder.layer.2.x": torch.zeros(1)}),
        "unexpected: bert.encoder.layer.2",
    ),
    "shape": (
        lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.zeros(9)}),
        r"bert.embeddings.LayerNorm.bias is \(9,\), expected \(8,\)",
    ),
    "dtype": (
        lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.zeros(8, dtype=torch.int64)}),
        r"LayerNorm.bias is \(8,\) of torch.int64",
    ),
    "untied": (
        lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(N_GENES + 4, 8)}),
        "decoder.weight differs from .*word_embeddings",
    ),
}


@pytest.mark.parametrize("kind", CHANGED_TENSORS)
def test_tensors_that_do_not_fit(kind: str, folder_of: Callable[[str], Path]) -> None:
    change, match = CHANGED_TENSORS[kind]
    path = folder_of("published") / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    refused(path.parent, match)
