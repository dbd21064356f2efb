"""``scfm annotate``: the same as the Python API, on files whose matrix is not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest

from scfm.cli._commands import COMMANDS
from scfm.cli._words import known_words
from scfm.tl._annotate import annotate

from ..tl.test_annotate import HOW, made

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*zarr:UserWarning",  # of anndata about the format it writes by default
    "ignore:From 0.4:FutureWarning",  # of mudata about its next release
    "ignore:Cannot join columns:UserWarning",  # of mudata; the modalities share names of genes
)


def run(*words: object) -> None:
    """Run the command as the command line does."""
    command = COMMANDS["annotate"]
    fixed = ("--labels-key", HOW["labels_key"], "--use-rep", HOW["use_rep"])
    words = tuple(known_words([str(word) for word in (*words, *fixed)], command.flags()))
    values = vars(command.parser().parse_args(words))
    command.call(**command.values(values))


def written(adata: ad.AnnData, path: Path) -> Path:
    if path.suffix == ".h5mu":
        other = ad.AnnData(np.ones((adata.n_obs, 2), np.float32), obs=adata.obs[[]])
        md.MuData({"rna": adata, "prot": other}).write_h5mu(path)
    else:
        adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
    return path


def read(path: Path) -> ad.AnnData:
    if path.suffix == ".h5mu":
        return md.read_h5mu(path)["rna"]
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".h5mu"])
@pytest.mark.parametrize("reference_suffix", [".h5ad", ".h5mu"])
def test_equals_the_verb(
    suffix: str, reference_suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = written(made(40, 1), tmp_path / f"query{suffix}"), tmp_path / f"out{suffix}"
    reference = written(made(), tmp_path / f"reference{reference_suffix}")
    modality = ["--modality", "rna"] if suffix == ".h5mu" or reference_suffix == ".h5mu" else []
    run(source, "--reference", reference, "--out", out, "--reject", 0.1, "--batch_key", "batch", *modality)
    assert "monocyte" in capsys.readouterr().out
    expected = annotate(made(40, 1), made(), reject=0.1, batch_key="batch", copy=True, **HOW)
    found = read(out)
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_dtype=suffix != ".zarr")
    np.testing.assert_array_equal(found.obsm["annotation_probabilities"], expected.obsm["annotation_probabilities"])
    assert list(found.uns["annotation_colors"]) == expected.uns["annotation_colors"]
    assert found.uns["annotation"]["params"]["limit"] == expected.uns["annotation"]["params"]["limit"]
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert list(found.uns["cell_type_colors"]) == expected.uns["cell_type_colors"]


def test_own_labels_types_and_the_same_file(tmp_path: Path) -> None:
    adata = made(60)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"CD4+/CD25 T": "T cell"})
    adata.obs.loc[adata.obs_names[40:], "cell_type"] = np.nan
    path = written(adata, tmp_path / "cells.h5ad")
    types = ["--ontology", "bundled", "--method", "ontology", "--candidates", "macrophage", "plasma cell"]
    with pytest.raises(FileExistsError):
        run(path, "--out", path, *types)
    for _ in range(2):
        run(path, "--out", path, "--overwrite", "--key_added", "mine", *types)
    found = read(path)
    assert list(found.obs.columns) == ["cell_type", "batch", "mine", "mine_score", "mine_novelty", "mine_cl"]
    assert set(found.obs["mine"][40:]) <= {"macrophage", "plasma cell"}
    assert (found.obs["mine"][:40].astype(str) == adata.obs["cell_type"][:40].astype(str)).all()
    assert set(found.obs["mine_cl"][40:]) <= {"CL:0000235", "CL:0000786"}


def test_the_matrix_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reference = written(made(40, 1), tmp_path / "query.h5ad"), written(made(), tmp_path / "reference.h5ad")
    reading = h5py.Dataset.__getitem__

    def without_matrix(self: h5py.Dataset, *args: object, **kwargs: object) -> object:
        assert not self.name.startswith(("/X", "/layers", "/raw"))
        return reading(self, *args, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", without_matrix)
    with pytest.raises(AssertionError):
        read(source)
    run(source, "--reference", reference, "--out", tmp_path / "out.h5ad")


def test_failures_leave_nothing(tmp_path: Path) -> None:
    source, reference = written(made(40, 1), tmp_path / "query.h5ad"), written(made(), tmp_path / "reference.h5ad")
    out = tmp_path / "out.h5ad"
    with pytest.raises(ValueError, match="'CD4\\+/CD25 T' is unknown"):
        run(source, "--reference", reference, "--out", out, "--ontology", "bundled")
    with pytest.raises(KeyError, match=r"no column obs\['donor'\]"):
        run(source, "--reference", reference, "--out", out, "--reject", 0.1, "--batch_key", "donor")
    with pytest.raises(ValueError, match="leave modality out"):
        run(source, "--reference", reference, "--out", out, "--modality", "rna")
    with pytest.raises(ValueError, match="must end in .h5ad"):
        run(source, "--reference", reference, "--out", tmp_path / "out.zarr")
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing.h5ad"):
        run(source, "--reference", tmp_path / "nothing.h5ad", "--out", out)
    plain = made(5)
    del plain.obsm["X_scfm_mini"]
    with pytest.raises(KeyError, match=r"no obsm\['X_scfm_mini'\] in .*plain.h5ad; there are: none. scfm.tl.embed"):
        run(written(plain, tmp_path / "plain.h5ad"), "--reference", reference, "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.h5ad", "query.h5ad", "reference.h5ad"]
