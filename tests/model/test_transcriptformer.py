"""TranscriptFormer and ESM2-CE as a user meets them: folders and names, options, matching, genes, other species."""

from __future__ import annotations

import shutil
import tarfile
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import scfm
from scfm.model import registry
from scfm.model.arguments import Arguments
from scfm.model.registry import card_of, find_card
from scfm.testing import TranscriptFormerOracle as Oracle
from scfm.testing import (
    esm2ce_cell,
    transcriptformer_cell,
    transcriptformer_states,
    transcriptformer_tokens,
    write_transcriptformer,
)
from scfm.weights.gene_vectors import write_gene_vectors
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel as Model

    Mouse = tuple[list[Path], NDArray[np.float32]]

IDS = [f"ENSG{i:011d}" for i in range(1, 61)]
MOUSE = [f"ENSMUSG{i:011d}" for i in range(1, 91)]
pytestmark = pytest.mark.filterwarnings("ignore:.*cells have an assay")  # one of them is not known, by intent
ASSAYS = ["10x 3' v3", "Smart-seq v4", "Drop-seq", "unknown"] * 2
HASHES = ("weights_sha256", "vocabulary_sha256")
LENGTH, N_OBS = 20, 8


def draw(n_genes: int) -> NDArray[np.float32]:
    """Cells of 1 to 20 genes, of which the last two fill the input; some counts are above 30."""
    rng = np.random.default_rng(2)
    values = np.zeros((N_OBS, n_genes), np.float32)
    for row, n in zip(values, (1, 2, 5, 8, 12, 15, 20, 20), strict=True):
        row[rng.choice(n_genes, n, replace=False)] = rng.geometric(0.1, n)
    return values


COUNTS = draw(60)


def cells(values: Any = COUNTS, genes: list[str] = IDS, **obs: Any) -> ad.AnnData:
    index = pd.Index([f"cell{i}" for i in range(len(values))])
    columns = {"assay": pd.Series(ASSAYS[: len(values)], dtype=object).to_numpy()} | obs
    return ad.AnnData(csr_matrix(values), obs=pd.DataFrame(columns, index=index), var=pd.DataFrame(index=genes))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    scfm.settings.reset()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transcriptformer(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture(scope="module")
def model(published: Path) -> Model:
    return scfm.model.load(published)


@pytest.fixture(scope="module")
def esm2ce(published: Path) -> Model:
    return scfm.model.load(published, family="esm2ce")


@pytest.fixture(scope="module")
def oracle(published: Path) -> Oracle:
    return Oracle.load(published)


def encoded(
    oracle: Oracle, adata: ad.AnnData, *, order: str = "input", column: str = "assay", **settings: Any
) -> Iterator[tuple[Any, Any, int]]:
    """Tokens, counts and assay of each cell, by the slow oracle."""
    tokens = np.array([oracle.vocabulary.get(gene, -1) for gene in adata.var_names])
    columns = np.arange(adata.n_vars) if order == "input" else np.argsort(tokens, kind="stable")
    settings = {"seq_len": LENGTH, "sort": order == "expression"} | settings
    for row, assay in zip(adata.X.toarray()[:, columns], adata.obs[column], strict=True):
        yield *transcriptformer_tokens(row, tokens[columns], **settings), oracle.assays.get(assay, 0)


def expected(oracle: Oracle, adata: ad.AnnData, **settings: Any) -> NDArray[np.float64]:
    return np.array([transcriptformer_cell(oracle, *cell).numpy() for cell in encoded(oracle, adata, **settings)])


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def differ(first: Any, second: Any) -> bool:
    return float(np.abs(first - second).max()) > 1e-3


def test_the_defaults_equal_the_oracles(model: Model, esm2ce: Model, oracle: Oracle) -> None:
    adata = cells()
    assert scfm.tl.embed(adata, model) is scfm.tl.embed(adata, esm2ce) is None
    close(adata.obsm["X_transcriptformer"], expected(oracle, adata))
    sums = [esm2ce_cell(oracle, tokens).numpy() for tokens, _, _ in encoded(oracle, adata)]
    close(adata.obsm["X_esm2ce"], np.array(sums))
    close(esm2ce.embed(adata, clip_counts=1, compat="upstream", gene_key="index"), np.array(sums))
    for family, n_features in (("transcriptformer", 16), ("esm2ce", 12)):
        params = adata.uns[family]["params"]
        assert (adata.obsm[f"X_{family}"].dtype, adata.obsm[f"X_{family}"].shape) == ("float32", (N_OBS, n_features))
        assert (params["family"], params["model"], params["max_tokens"]) == (family, "tiny", LENGTH + 1)
        assert (params["n_cells_truncated"], params["n_cells_empty"], params["n_cells_unknown_assay"]) == (0, 0, 4)
        assert params["options"]["clip_counts"] == 30
        assert "n_cells_dropped" not in params


def test_a_folder_with_a_registered_name(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(published, tmp_path / "tf_sapiens")
    other = scfm.model.load(folder)  # a vocabulary of another size: the name is chance
    assert (other.card.id, other.card.license) == ("tf_sapiens", "")
    monkeypatch.setitem(find_card("tf-sapiens").architecture, "vocab_size", other.vocabulary.size)  # type: ignore[union-attr]
    card = scfm.model.load(folder).card
    assert (card.id, card.license, card.species, card.family) == ("tf-sapiens", "MIT", "human", "transcriptformer")
    assert card.weights_sha256 == sha256(published / "model_weights.pt")
    assert card.aux_tokens == {"assay": {"unknown": 0, "10x 3' v3": 1, "Smart-seq v4": 2}}
    assert card.max_tokens == LENGTH + 1


@pytest.mark.parametrize("source", ["folder", "a.tar", "a.tar.gz", "a.tgz"])
def test_a_converted_model_gives_the_same_bits(source: str, published: Path, model: Model, tmp_path: Path) -> None:
    path = published
    if source != "folder":
        path = tmp_path / source
        with tarfile.open(path, "w" if source == "a.tar" else "w:gz") as tar:
            tar.add(published, "tiny")
    folder = scfm.model.convert(path, tmp_path / "deep" / "out")
    assert {file.name for file in folder.iterdir()} == {
        "aliases.tsv",
        "card.json",
        "model.safetensors",
        "vocabulary.tsv",
    }
    assert [file.name for file in folder.parent.iterdir()] == ["out"]
    loaded = scfm.model.load(folder)
    assert loaded.card == model.card.with_(**{name: getattr(loaded.card, name) for name in HASHES})
    for pooling in ("cell", "gene"):
        np.testing.assert_array_equal(loaded.embed(cells(), pooling=pooling), model.embed(cells(), pooling=pooling))
    first, second = cells(), cells()
    scfm.tl.score(first, loaded)
    scfm.tl.score(second, model)
    pd.testing.assert_frame_equal(first.obs, second.obs)
    baseline = scfm.model.load(folder, family="esm2ce").embed(cells())
    np.testing.assert_array_equal(baseline, scfm.model.load(published, family="esm2ce").embed(cells()))


def test_what_a_killed_conversion_unpacked_is_removed(
    published: Path, tmp_path: Path, stop_at: Callable[..., Callable[[], bool]]
) -> None:
    path, out = tmp_path / "a.tar", tmp_path / "deep" / "out"
    with tarfile.open(path, "w") as tar:
        tar.add(published, "tiny")
    stopped = stop_at(0, dead=True)
    with pytest.raises(KeyboardInterrupt):
        scfm.model.convert(path, out)
    assert stopped()
    assert list(out.parent.iterdir())
    scfm.model.convert(path, out)
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["converted", "published"])
@pytest.mark.parametrize("name", ["tf-sapiens", "tf_sapiens", "TranscriptFormer-Sapiens", "esm2ce-sapiens"])
def test_names_of_the_cache(
    name: str, kind: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scfm.settings.cache_dir = tmp_path
    folder = tmp_path / "models" / "tf-sapiens"
    with pytest.raises(
        FileNotFoundError, match=r"not on this machine \(looked in .*tf-sapiens\).*bring https.*/tf_sap"
    ):
        scfm.model.load(name)
    published = shutil.copytree(published, tmp_path / "tf_sapiens")
    scfm.model.convert(published, folder) if kind == "converted" else shutil.copytree(published, folder)
    with pytest.raises(ValueError, match="does not hold tf-sapiens: its card says"):
        scfm.model.load(name)  # another model in its place
    scfm.model.prune_cache("tf-sapiens")
    sizes = scfm.model.load(published).card.architecture
    monkeypatch.setitem(registry.known_cards, "tf-sapiens", card_of("tf-sapiens").with_(architecture=sizes))
    scfm.model.convert(published, folder) if kind == "converted" else shutil.copytree(published, folder)
    loaded = scfm.model.load(name)
    assert loaded.family == ("esm2ce" if "esm" in name.lower() else "transcriptformer")
    short = cells(COUNTS[:6])
    np.testing.assert_array_equal(loaded.embed(short), scfm.model.load(published, family=loaded.family).embed(short))


def test_models_are_listed() -> None:
    table = scfm.model.list_models()
    rows = table.loc[[f"{kind}-{name}" for kind in ("tf", "esm2ce") for name in ("sapiens", "exemplar", "metazoa")]]
    assert rows["family"].tolist() == ["transcriptformer"] * 3 + ["esm2ce"] * 3
    assert rows["layers"].tolist() == [12] * 3 + [0] * 3
    assert rows["features"].tolist() == [2048] * 3 + [2560] * 3
    assert (rows["max_tokens"] == 2048).all()
    assert (rows["license"] == "MIT").all()
    assert rows.loc["esm2ce-sapiens", "parameters"] == 23_829 * 2560


def test_matching_by_name_needs_the_gene_files_only(published: Path) -> None:
    for name, files in (("tf-sapiens", "."), ("tf-exemplar", "homo_sapiens_gene.h5"), ("esm2ce-sapiens", ".")):
        assert scfm.pp.match_genes(cells(), name, dictionaries=published / "vocabs" / files).by_id == 60


EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": ({"clip_counts": 2}, {"clip_counts": 2}),
    "no clip": ({"clip_counts": None}, {"clip_counts": np.inf}),
    "scale": ({"normalize_to_scale": 50}, {"normalize_to_scale": 50}),
    "vocabulary": ({"gene_order": "vocabulary"}, {"order": "vocabulary"}),
    "expression": ({"gene_order": "expression"}, {"order": "expression"}),
    "sort_genes": ({"sort_genes": True}, {"order": "expression"}),
    "both": ({"sort_genes": True, "gene_order": "expression"}, {"order": "expression"}),
    "aux_cols": ({"aux_cols": "protocol"}, {"column": "protocol"}),
}


@pytest.mark.parametrize("kind", EFFECTS)
def test_the_effect_of_an_option(kind: str, model: Model, oracle: Oracle) -> None:
    options, settings = EFFECTS[kind]
    adata = cells(protocol=ASSAYS[::-1])
    found = model.run(adata, Arguments.of(options))
    close(found.values, expected(oracle, adata, **settings))
    assert differ(found.values, model.embed(adata))
    assert found.params["options"].items() >= options.items()


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_genes_that_are_not_known(compat: Any, model: Model, oracle: Oracle) -> None:
    values = np.hstack([COUNTS[:6], np.full((6, 2), 3, np.float32)])
    adata = cells(values, [*IDS, "ENSG00000999999", "other"])
    options: dict[str, Any] = {"compat": compat, "gene_key": "index"}
    close(model.embed(adata, **options), expected(oracle, cells(COUNTS[:6])))
    wanted = []
    for tokens, counts, assay in encoded(oracle, cells(COUNTS[:6])):
        wanted.append(transcriptformer_cell(oracle, [*tokens, 0, 0], [*counts, 3, 3], assay).numpy())
    close(model.embed(adata, filter_to_vocabs=False, **options), wanted)


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    plain: dict[str, Any] = {"clip_counts": 9, "seed": 3, "randomize_genes": True}
    given = plain | {"clip_counts": np.float32(9), "seed": np.int64(3), "min_expressed_genes": np.int64(1)}
    np.testing.assert_array_equal(model.embed(cells(), **given), model.embed(cells(), **plain))


def doubled() -> tuple[ad.AnnData, NDArray[np.float32]]:
    """The counts of five genes on two columns each, and those of the first."""
    second = np.floor(COUNTS[:, :5] / 2)
    first = COUNTS.copy()
    first[:, :5] -= second
    adata = cells(np.hstack([first, second]), [f"row{i}" for i in range(65)])
    adata.var["ensembl_id"] = IDS + [f"{gene}.4" for gene in IDS[:5]]
    return adata, first


def test_duplicate_genes(model: Model) -> None:
    adata, first = doubled()
    summed = model.run(adata)
    np.testing.assert_array_equal(summed.values, model.embed(cells()))
    assert [summed.params["genes"][name] for name in ("matched", "merged", "by_version")] == [65, 5, 5]
    with pytest.raises(ValueError, match=r"5 gene ids of var\['ensembl_id'\] .* such as 'ENSG00000000001', which up"):
        model.embed(adata, compat="upstream")
    for compat in (None, "upstream"):
        found = model.embed(adata, remove_duplicate_genes=True, compat=compat)
        np.testing.assert_array_equal(found, model.embed(cells(first)))
        assert differ(found, summed.values)


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_duplicates_that_are_removed_are_not_seen(compat: Any, model: Model) -> None:
    adata, first = doubled()
    found = model.run(
        adata, Arguments(compat=compat, options={"remove_duplicate_genes": True, "filter_to_vocabs": False})
    )
    np.testing.assert_array_equal(found.values, model.embed(cells(first)))
    assert found.params["genes"]["merged"] == 0


def test_ids_are_matched_with_their_versions_taken_off(model: Model) -> None:
    adata = cells(genes=[f"{gene}.{i}" for i, gene in enumerate(IDS)])
    adata.var["ensembl_id"] = adata.var_names
    for compat in (None, "upstream"):
        found = model.run(adata, Arguments(compat=compat))
        np.testing.assert_array_equal(found.values, model.embed(cells()))
        assert found.params["genes"]["by_version"] == 60
    adata.var["ensembl_id"] = [gene.lower() for gene in IDS]
    np.testing.assert_array_equal(model.embed(adata, gene_key="ensembl_id"), model.embed(cells()))
    with pytest.raises(ValueError, match=r"No gene .*var\['ensembl_id'\] holds .*The model expects human Ensembl ids"):
        model.embed(adata, compat="upstream")


KNOWN = ["10x 3' v3"] * 4 + ["Smart-seq v4"] * 4
LABELS: dict[str, Any] = {
    "string": pd.array(KNOWN, dtype="string"),
    "NaN": [np.nan] * N_OBS,
    "numbers": list(range(N_OBS)),
    "categorical": pd.Categorical(KNOWN),
    "one category": pd.Categorical(KNOWN[:1] * N_OBS),
    "categorical with NaN": pd.Categorical([None, *KNOWN[1:]]),
    "other categories": pd.Categorical(ASSAYS),
    "unused category": pd.Categorical(KNOWN, categories=["Drop-seq", *KNOWN[3:5]]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_the_assay(kind: str, model: Model, oracle: Oracle) -> None:
    adata = cells(assay=LABELS[kind])
    found = model.run(adata)
    close(found.values, expected(oracle, adata))
    assert found.params["n_cells_unknown_assay"] == sum(label not in KNOWN for label in adata.obs["assay"])


@pytest.mark.parametrize("label", ["10X 3' v3", "10x 3\u2019 v3", "EFO:0009922", "10x 3' v3 ", "10x_3'_v3.1"])
def test_an_assay_in_other_words(label: str, model: Model) -> None:
    known, other = cells(assay="10x 3' v3"), cells(assay=label)
    np.testing.assert_array_equal(model.embed(other), model.embed(known))
    with pytest.warns(UserWarning, match=r"8 of 8 cells have an assay .* does not know.*It knows: 10x 3' v3, Smart"):
        assert model.run(other, Arguments(compat="upstream", gene_key="index")).params["n_cells_unknown_assay"] == N_OBS


def test_an_assay_that_is_not_known(model: Model) -> None:
    with pytest.warns(UserWarning, match=r"4 of 8 cells have an assay in obs\['assay'\].*\('Drop-seq'\)"):
        model.embed(cells(assay=["Drop-seq", "10x 3' v3"] * 4))
    for label in (None, "unknown"):
        with warnings.catch_warnings(action="error"):
            model.embed(cells(assay=label))


def test_a_missing_assay_is_an_unknown_one(model: Model) -> None:
    adata = cells()
    del adata.obs["assay"]
    wanted, found = model.embed(cells(assay="unknown")), model.run(adata)
    np.testing.assert_array_equal(found.values, wanted)
    assert found.params["n_cells_unknown_assay"] == N_OBS
    with pytest.raises(KeyError, match="aux_cols='protocol' is not a column of obs; found"):
        model.embed(adata, aux_cols="protocol")


@pytest.mark.parametrize("layer", [0, -1, -2])
def test_hidden_layers(layer: int, model: Model, oracle: Oracle) -> None:
    states = [transcriptformer_states(oracle, *cell, n_layers=2 + layer) for cell in encoded(oracle, cells())]
    close(model.embed(cells(), hidden_layer=layer), [cell.sum(0).numpy() / LENGTH for cell in states])


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_genes_are_averaged_over_groups(compat: Any, model: Model, oracle: Oracle) -> None:
    adata = cells(batch=pd.Categorical([*"abbaaba", None], categories=["b", "none", "a"]))
    arguments: dict[str, Any] = {"pooling": "gene", "compat": compat, "gene_key": "index"}
    scfm.tl.embed(adata, model, **arguments, key_added="genes")
    scfm.tl.embed(adata, model, **arguments, key_added="groups", groupby="batch")
    assert not list(adata.obsm)
    assert adata.uns["groups"]["params"]["groups"] == ["b", "none", "a"]
    sums, seen = np.zeros((60, 4, 16)), np.zeros((60, 4, 1))  # the last of all cells
    names = list(oracle.vocabulary)
    for (tokens, counts, assay), group in zip(encoded(oracle, adata), adata.obs["batch"].cat.codes, strict=True):
        states = transcriptformer_states(oracle, tokens, counts, assay, read_all=compat is None).numpy()
        columns = adata.var_names.get_indexer([names[token] for token in tokens])
        for where in {group, 3} - {-1}:
            sums[columns, where] += states[1:] if compat is None else states[: len(tokens)]
            seen[columns, where] += 1
    wanted = np.divide(sums, seen, where=seen > 0, out=np.full_like(sums, np.nan))
    close(adata.varm["genes"], wanted[:, 3])
    close(adata.varm["groups"], wanted[:, :3])
    assert np.isnan(adata.varm["groups"][:, 1]).all()


def test_genes_of_the_baseline_are_their_vectors(esm2ce: Model, oracle: Oracle) -> None:
    table = oracle.tensors["gene_embeddings.embedding.weight"].numpy()
    wanted = np.array([table[oracle.vocabulary[gene]] for gene in IDS])
    wanted[COUNTS.sum(axis=0) == 0] = np.nan
    close(esm2ce.embed(cells(), pooling="gene"), wanted)


@pytest.fixture(scope="module")
def mouse(tmp_path_factory: pytest.TempPathFactory) -> Mouse:
    """All genes in one file, the same in two of which the second has another vector for genes of the first."""
    folder = tmp_path_factory.mktemp("mouse")
    vectors = np.random.default_rng(4).standard_normal((90, 12)).astype(np.float32)
    parts = {"all": (MOUSE, vectors), "a": (MOUSE[:30], vectors[:30])}
    parts["b"] = (MOUSE[20:], np.concatenate([vectors[:10], vectors[30:]]))
    return [write_gene_vectors(folder / f"{name}_gene.h5", *part) for name, part in parts.items()], vectors


def test_genes_of_another_species(
    mouse: Mouse,
    model: Model,
    esm2ce: Model,
    oracle: Oracle,
) -> None:
    (whole, *parts), vectors = mouse
    adata, before = cells(draw(90), MOUSE), model.embed(cells())
    table = np.concatenate([oracle.tensors["gene_embeddings.embedding.weight"][:7].numpy(), vectors])
    other = replace(oracle, vocabulary={name: i for i, name in enumerate([*list(oracle.vocabulary)[:7], *MOUSE])})
    found = model.run(adata, Arguments(options={"pretrained_embedding": whole}))
    close(found.values, [transcriptformer_cell(other, *cell, gene_vectors=table) for cell in encoded(other, adata)])
    sums = [esm2ce_cell(other, tokens, gene_vectors=table) for tokens, _, _ in encoded(other, adata)]
    close(esm2ce.embed(adata, pretrained_embedding=[whole]), sums)
    for given in (parts, [str(path) for path in parts], tuple(parts)):
        again = model.run(adata, Arguments(options={"pretrained_embedding": given}))
        np.testing.assert_array_equal(again.values, found.values)
        assert again.params["pretrained_embedding_sha256"] == sha256(*parts)
        assert again.params["options"]["pretrained_embedding"] == [str(path) for path in parts]
    assert found.params["pretrained_embedding_sha256"] == sha256(whole)
    assert found.params["genes"]["n_vocabulary"] == 90 > len(model.vocabulary.genes)
    assert differ(model.embed(adata, pretrained_embedding=whole, compat="upstream", gene_key="index"), found.values)
    np.testing.assert_array_equal(model.embed(cells()), before)


def test_gene_vectors_that_changed_are_read_again(mouse: Mouse, model: Model, tmp_path: Path) -> None:
    adata, path = cells(draw(90), MOUSE), tmp_path / "made_gene.h5"
    for vectors in (mouse[1], mouse[1][::-1]):
        write_gene_vectors(path, MOUSE, vectors, overwrite=True)
        assert model.run(adata, Arguments(options={"pretrained_embedding": path})).params[
            "pretrained_embedding_sha256"
        ] == sha256(path)


def test_a_checkpoint_of_two_species(tmp_path: Path) -> None:
    folder = write_transcriptformer(tmp_path / "two", species=("homo_sapiens", "mus_musculus"))
    oracle = Oracle.load(folder)
    for loaded in (scfm.model.load(folder), scfm.model.load(scfm.model.convert(folder, tmp_path / "out"))):
        assert loaded.vocabulary.token_of == {name: i for name, i in oracle.vocabulary.items() if i > 6}
        for genes in (IDS[:30] + MOUSE[:30], MOUSE[:30] + IDS[30:], IDS):
            close(loaded.embed(cells(genes=genes)), expected(oracle, cells(genes=genes)))
