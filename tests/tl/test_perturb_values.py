"""Perturbations of models that read counts or bins, and of likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import scfm
from scfm.tasks import Genes, edit_values

from ..families import IDS, TINY

if TYPE_CHECKING:
    from anndata import AnnData

N_GENES = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return TINY["TranscriptFormer"].load(tmp_path_factory.mktemp("tf"))


@pytest.fixture
def adata() -> AnnData:
    adata = scfm.datasets.synthetic(8, N_GENES, genes_per_cell=8)
    adata.var_names = IDS[:N_GENES]
    return adata


def often(adata: AnnData) -> str:
    """A gene that most cells express, but not all."""
    n = np.asarray(adata.X.getnnz(axis=0))
    return str(adata.var_names[int(np.where(n < adata.n_obs, n, 0).argmax())])


def bins(kind: Any, group: list[int], max_genes: int = 10) -> tuple[list[int], list[float]]:
    genes = Genes(np.array([5, 6, 7], np.int32), np.array([1, 3, 0], np.float32))
    found = edit_values(genes, group, kind=kind, max_genes=max_genes, highest=4, whole=True)
    assert genes.values is not None
    assert genes.values.tolist() == [1, 3, 0]
    assert found.values is not None
    assert (found.tokens.dtype, found.values.dtype) == (np.int32, np.float32)
    return found.tokens.tolist(), found.values.tolist()


def test_bins() -> None:
    assert bins("delete", [6]) == ([5, 7], [1, 0])
    assert bins("overexpress", [7]) == ([5, 6, 7], [1, 3, 4])
    assert bins("overexpress", [9, 6], 3) == ([9, 5, 6], [4, 1, 4])
    assert bins("inhibit", [5, 6]) == ([5, 6, 7], [0, 1, 0])
    assert bins("activate", [5, 6]) == ([5, 6, 7], [2, 4, 0])


def test_embeddings_are_those_of_changed_counts(model: Any, adata: AnnData) -> None:
    """The assay and the start token stay; twice a count is what a cell with twice the count has."""
    adata.obs["assay"] = ["10x 3' v3", "unknown"] * 4
    gene = often(adata)
    scfm.tl.perturb(adata, model, genes=[gene], kind="activate", embeddings=True, gene_effects=True, device="cpu")
    found = scfm.get.perturbed(adata)
    scfm.tl.embed(adata, model, device="cpu")
    changed = adata.copy()
    dense = changed.X.toarray()
    dense[:, adata.var_names.get_loc(gene)] *= 2
    changed.X = dense
    scfm.tl.embed(changed, model, device="cpu")
    expressed = adata.obs["perturb_n"] == 1
    assert 0 < expressed.sum() < adata.n_obs
    for name, wanted in (("control", adata), (gene, changed[expressed])):
        rows = found[found.obs["perturbation"] == name]
        order = [f"{cell}_{name}" for cell in wanted.obs_names]
        np.testing.assert_allclose(rows[order].X, wanted.obsm["X_transcriptformer"], atol=1e-6)
    assert adata.varp["perturb"].nnz > 0


def test_what_comes_before_a_gene_is_not_affected(model: Any, adata: AnnData) -> None:
    gene = often(adata)
    scfm.tl.perturb(adata, model, genes=[gene], gene_effects=True, gene_order="vocabulary", device="cpu")
    effects = adata.varp["perturb"][adata.var_names.get_loc(gene)].toarray()[0]
    token_of = model.vocabulary.token_of
    before = np.array([token_of[name] < token_of[gene] for name in adata.var_names])
    assert effects[~before].any()
    np.testing.assert_allclose(effects[before], 0, atol=1e-6)


def test_compat_changes_no_effect(model: Any, adata: AnnData) -> None:
    adata.var["ensembl_id"] = adata.var_names
    arguments = {"genes": [adata.var_names[3]], "kind": "overexpress", "gene_effects": True, "device": "cpu"}
    scfm.tl.perturb(adata, model, **arguments)
    scfm.tl.perturb(adata, model, compat="upstream", key_added="compat", **arguments)
    for slot in (adata.layers, adata.varp):
        np.testing.assert_array_equal(slot["compat"].toarray(), slot["perturb"].toarray())


def test_likelihoods_take_all_genes_and_the_last_layer(model: Any, adata: AnnData) -> None:
    """A deletion leaves the likelihood of the genes before it, and takes away what the score of the gene itself was."""
    scfm.tl.perturb(adata, model, effect="likelihood", device="cpu")
    scfm.tl.score(adata, model, per_gene=True, device="cpu")
    scores = sum(adata.layers[f"transcriptformer_{kind}_llh"] for kind in ("count", "gene")).toarray()
    row, column = (int(axis[0]) for axis in adata.layers["perturb_llh"].nonzero())
    changed = adata[[row]].copy()
    dense = changed.X.toarray()
    dense[0, column] = 0
    changed.X = dense
    scfm.tl.score(changed, model, per_gene=True, device="cpu")
    after = sum(changed.layers[f"transcriptformer_{kind}_llh"] for kind in ("count", "gene")).toarray()[0]
    wanted = after.sum() - (scores[row].sum() - scores[row, column])
    assert adata.layers["perturb_llh"][row, column] == pytest.approx(wanted, abs=1e-4)
    params = adata.uns["perturb"]["params"]
    assert (params["effect"], params["hidden_layer"]) == ("likelihood", 0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"clip_counts": None, "kind": "overexpress"}, ValueError, "clip_counts=, which is None"),
        ({"filter_to_vocabs": False}, ValueError, "filter_to_vocabs=False gives one token"),
        ({"effect": "score"}, ValueError, "effect='score' is not known; use 'embedding' or 'likelihood'"),
        ({"effect": "likelihood", "pooling": "cell"}, ValueError, "pooling= has no meaning"),
        ({"effect": "likelihood", "hidden_layer": -1}, ValueError, "hidden_layer= has no meaning"),
        ({"effect": "likelihood", "embeddings": True}, ValueError, "embeddings= has no meaning"),
        (
            {"effect": "likelihood", "states_key": "a", "start": "b", "goal": "c"},
            ValueError,
            "states_key= has no meaning",
        ),
        ({"pooling": "gene"}, ValueError, "no embedding of cells"),
        ({"genes": ["nothing"]}, KeyError, "nothing"),
    ],
)
def test_what_is_refused(
    arguments: Any, error: type[Exception], words: str, model: Any, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(model), "forward")  # nothing is computed before
    with pytest.raises(error, match=words):
        scfm.tl.perturb(adata, model, device="cpu", **arguments)
    assert not list(adata.layers) + list(adata.uns)


def test_other_families_are_refused(adata: AnnData, tmp_path_factory: pytest.TempPathFactory) -> None:
    esm, ranked = (TINY[name].load(tmp_path_factory.mktemp("m")) for name in ("ESM2-CE", "Geneformer V2"))
    families = "geneformer, sccello, scfm_mini, transcriptformer"
    with pytest.raises(TypeError, match=f"does not read how much genes are expressed.*: {families}"):
        scfm.tl.perturb(adata, esm)
    with pytest.raises(TypeError, match="has no likelihood; models of these families have: transcriptformer"):
        scfm.tl.perturb(adata, ranked, effect="likelihood")
