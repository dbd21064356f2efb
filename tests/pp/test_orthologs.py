"""Counts of mouse as counts of human."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfm
from tests.rounding import close

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "mouse.md"

MOUSE = ["ENSMUSG00000000001", "ENSMUSG00000000002", "ENSMUSG00000000003", "ENSMUSG00000000004", "ENSMUSG00000000005"]
HUMAN = ["ENSG00000000011", "ENSG00000000012", "ENSG00000000013", "ENSG00000000014"]
# mouse 1 and human 12 have one partner each; mouse 2 has two, human 14 has two; mouse 5 has none
PAIRS = [
    (MOUSE[0], "Aaa", HUMAN[1], "BBB", "ortholog_one2one"),
    (MOUSE[1], "Bbb", HUMAN[0], "AAA", "ortholog_one2many"),
    (MOUSE[1], "Bbb", HUMAN[2], "CCC", "ortholog_one2many"),
    (MOUSE[2], "Ccc", HUMAN[3], "DDD", "ortholog_many2many"),
    (MOUSE[3], "Ddd", HUMAN[3], "DDD", "ortholog_many2many"),
    (MOUSE[4], "Eee", "", "", ""),
]
PAGE = ["Gene stable ID", "Gene name", "Human gene stable ID", "Human gene name", "Human homology type"]
PACKAGE = [
    "ensembl_gene_id",
    "external_gene_name",
    "hsapiens_homolog_ensembl_gene",
    "hsapiens_homolog_associated_gene_name",
    "hsapiens_homolog_orthology_type",
]
FROM_HUMAN = ["Mouse gene stable ID", "Mouse gene name", "Gene stable ID", "Gene name", "Mouse homology type"]
COUNTS = np.array([[1, 2, 4, 8, 16], [0, 3, 0, 5, 0]], np.float32)


def table(headings: list[str] = PAGE) -> pd.DataFrame:
    return pd.DataFrame(PAIRS, columns=headings)


def mouse(names: list[str] = MOUSE, values: Any = COUNTS, **columns: Any) -> ad.AnnData:
    obs = pd.DataFrame({"batch": ["x", "y"]}, index=["a", "b"])
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(columns, index=names))


@pytest.mark.parametrize("headings", [PAGE, PACKAGE, FROM_HUMAN])
@pytest.mark.parametrize(
    "adata",
    [
        mouse(),
        mouse([f"{name}.3" for name in MOUSE]),
        mouse(["Aaa", "Bbb", "Ccc", "Ddd", "Eee"]),
        mouse(list("12345"), gene_ids=MOUSE),
        mouse([f"mm10___{name}" for name in MOUSE]),
        mouse(values=sparse.csc_matrix(COUNTS)),
        mouse(values=COUNTS.astype(np.int64)),
    ],
    ids=["ids", "versions", "symbols", "column", "genome", "CSC", "int64"],
)
def test_one_to_one(adata: ad.AnnData, headings: list[str]) -> None:
    before = adata.copy()
    found = scfm.pp.to_orthologs(adata, table(headings))
    assert found.var_names.tolist() == [HUMAN[1]]
    assert sparse.issparse(found.X)
    assert found.X.toarray().tolist() == [[1], [0]]
    assert found.var["gene_name"].tolist() == ["BBB"]
    pd.testing.assert_frame_equal(found.obs, before.obs)
    params = found.uns["orthologs"]["params"]
    assert (params["n_genes"], params["n_mapped"], params["n_targets"]) == (5, 1, 1)
    assert params["share_of_counts"] == pytest.approx(1 / 39)
    pd.testing.assert_frame_equal(adata.var, before.var)


def test_counts_are_added() -> None:
    found = scfm.pp.to_orthologs(mouse(), table(), relations=["one2one", "one2many", "many2many"])
    assert found.var_names.tolist() == HUMAN
    assert found.X.toarray().tolist() == [[2, 1, 2, 12], [3, 0, 3, 5]]
    assert found.var["ortholog_of"].tolist() == [MOUSE[1], MOUSE[0], MOUSE[1], f"{MOUSE[2]};{MOUSE[3]}"]


def test_without_a_column_of_relations() -> None:
    pairs = table()[["Gene stable ID", "Human gene stable ID"]]
    assert scfm.pp.to_orthologs(mouse(), pairs).var_names.tolist() == [HUMAN[1]]


def test_small_integers_do_not_overflow() -> None:
    adata = mouse(values=np.full((2, 5), 200, np.uint8))
    found = scfm.pp.to_orthologs(adata, table(), relations="many2many")
    assert found.X.toarray().tolist() == [[400], [400]]


def test_columns_of_other_names() -> None:
    other = table(["m", "m name", "h", "h name", "kind"])
    found = scfm.pp.to_orthologs(mouse(), other, source="m", target="h name", relation_key="kind")
    assert found.var_names.tolist() == ["BBB"]
    with pytest.raises(KeyError, match="'mm' is not in the table; found"):
        scfm.pp.to_orthologs(mouse(), other, source="mm", target="h")
    with pytest.raises(TypeError, match="target must be str or None; got list of str"):
        scfm.pp.to_orthologs(mouse(), other, source="m", target=["h"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no column with ids of another species beside 'm'; .* target="):
        scfm.pp.to_orthologs(mouse(), other, source="m")


def test_antibodies_are_not_genes() -> None:
    adata = mouse(["Aaa", "Bbb", "Ccc", "Ddd", "Aaa-1"], feature_name=["Aaa", "Bbb", "Ccc", "Ddd", "Aaa"])
    adata.var["feature_types"] = ["Gene Expression"] * 4 + ["Antibody Capture"]
    assert scfm.pp.to_orthologs(adata, table()).X.toarray().tolist() == [[1], [0]]


def test_counts_are_found_as_by_embed() -> None:
    adata = mouse(values=COUNTS / 2)
    adata.layers["counts"] = COUNTS
    assert scfm.pp.to_orthologs(adata, table(), layer="counts").X.toarray().tolist() == [[1], [0]]


def test_what_does_not_fit() -> None:
    with pytest.raises(
        ValueError, match="No gene of the data is in the table: var_names holds human Ensembl ids.*mouse"
    ):
        scfm.pp.to_orthologs(mouse([*HUMAN, "x"]), table().drop(columns="Human gene stable ID"))
    with pytest.raises(ValueError, match=r"has an ortholog \(one2many\) in 'Human gene stable ID'; relations="):
        scfm.pp.to_orthologs(mouse()[:, [0]].copy(), table(), relations="one2many")
    with pytest.raises(ValueError, match="relations='all' is not known; give one or several of 'one2one'"):
        scfm.pp.to_orthologs(mouse(), table(), relations="all")
    with pytest.raises(ValueError, match="several columns with ids of another species .*target="):
        scfm.pp.to_orthologs(mouse(), table().assign(**{"Rat gene stable ID": "ENSRNOG00000000001"}))
    with pytest.raises(TypeError, match="adata must be AnnData; got 'a.h5ad'"):
        scfm.pp.to_orthologs("a.h5ad", table())  # type: ignore[arg-type]


def test_few_genes_in_the_table() -> None:
    adata = mouse([MOUSE[0], *"abcd"])
    assert scfm.pp.to_orthologs(adata, table()).n_vars == 1
    with pytest.warns(UserWarning, match="1 of 6 genes in var_names have orthologs"):
        scfm.pp.to_orthologs(ad.AnnData(np.ones((1, 6), "f4"), var=pd.DataFrame(index=[MOUSE[0], *"abcde"])), table())


@pytest.mark.parametrize(("name", "sep"), [("mart_export.txt", "\t"), ("mart.csv", ","), ("mart.tsv.gz", "\t")])
def test_files(name: str, sep: str, tmp_path: Path) -> None:
    table().to_csv(tmp_path / name, sep=sep, index=False)
    assert scfm.pp.to_orthologs(mouse(), tmp_path / name).var_names.tolist() == [HUMAN[1]]


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippets, in order, on files of the names that it uses."""
    monkeypatch.chdir(tmp_path)
    vocabulary = scfm.model.load_recipe("scfm-mini").vocabulary
    genes = vocabulary.genes[::20].tolist()
    names = [gene.replace("ENSG", "ENSMUSG") for gene in genes]
    rows = [
        (name, name.lower(), gene, gene.lower(), "ortholog_one2one") for name, gene in zip(names, genes, strict=True)
    ]
    pd.DataFrame(rows, columns=PAGE).to_csv("mart_export.txt", sep="\t", index=False)
    counts = np.random.default_rng(0).poisson(1, (20, len(names))).astype(np.float32)
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(20)])
    ad.AnnData(sparse.csr_matrix(counts), obs=cells, var=pd.DataFrame(index=names)).write_h5ad("mouse.h5ad")
    with pytest.raises(ValueError, match=r"Models that know mouse: tf-exemplar.*scfm.pp.to_orthologs"):
        scfm.tl.embed(ad.read_h5ad("mouse.h5ad"), "scfm-mini")
    names_there: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(snippet, names_there)
    expected = scfm.model.load("scfm-mini").embed(ad.AnnData(counts, obs=cells, var=pd.DataFrame(index=genes)))
    close(names_there["mouse"].obsm["X_scfm_mini"], expected)
    assert "tf-metazoa" in names_there["models"].index


def test_compressions_that_blow_up(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "mart.tsv.bz2", sep="\t", index=False)
    (tmp_path / "mart.tsv.gz").write_bytes(b"no gzip")
    for name in ("mart.tsv.bz2", "mart.tsv.gz"):
        with pytest.raises(ValueError, match="is not a table of orthologs"):
            scfm.pp.to_orthologs(mouse(), tmp_path / name)
