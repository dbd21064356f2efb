"""Gene vectors of proteins against ESM-2 run on one protein at a time."""

from __future__ import annotations

import gzip
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, EsmConfig, EsmForMaskedLM, EsmModel, EsmTokenizer

import scfm
from scfm.pp import _protein as module
from scfm.pp import protein_vectors
from scfm.weights.gene_vectors import read_gene_names, read_gene_vectors

if TYPE_CHECKING:
    from pathlib import Path

N_LAYERS = 3
VOCABULARY = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U O Z . - <null_1> <mask>".split()
# gene, protein: not in the order of length; with unknown residues, lower case and a gene of three proteins
PROTEINS = [
    ("ENSG02", "MKTAYIAKQR"),
    ("ENSG01", "MWWPH"),
    ("ENSG02", "MKT"),
    ("ENSG03", "MA**L*"),
    ("ENSG04", "MJJKUOXBZ"),
    ("LOC5", "MDEVRNDLLLSTGGAC" * 3),
    ("ENSG02", "MGGGGGG"),
    ("ENSG06", "mkTayi"),
]
GENES = ["ENSG02", "ENSG01", "ENSG03", "ENSG04", "LOC5", "ENSG06"]
Pair = tuple[EsmModel, EsmTokenizer]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ESM-2 as it is published: with the head of a language model."""
    path = tmp_path_factory.mktemp("esm2")
    (path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(VOCABULARY),
        mask_token_id=VOCABULARY.index("<mask>"),
        pad_token_id=VOCABULARY.index("<pad>"),
        hidden_size=16,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        initializer_range=0.5,
    )
    EsmForMaskedLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def pair(folder: Path) -> Pair:
    return EsmModel.from_pretrained(folder, add_pooling_layer=False).eval(), EsmTokenizer.from_pretrained(folder)


def write_fasta(path: Path, proteins: list[tuple[str, str]] = PROTEINS, width: int = 7) -> Path:
    """A file as Ensembl publishes it."""
    text = ""
    for number, (gene, sequence) in enumerate(proteins):
        text += f">ENSP{number:03d}.4 pep chromosome:A:17:76:-1 gene:{gene}.18 transcript:ENST{number}.9 gene_symbol:S{number}\n"
        text += "".join(sequence[start : start + width] + "\n" for start in range(0, len(sequence), width))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def one_by_one(pair: Pair, sequence: str, layer: int = N_LAYERS, longest: int = 1022) -> np.ndarray[Any, Any]:
    """The vector of one protein: all layers, no padding, and the tokens of the tokenizer itself."""
    model, tokenizer = pair
    residues = ["<unk>" if residue in "*J" else residue for residue in sequence.upper()[:longest]]
    tokens = tokenizer("".join(residues), return_tensors="pt")
    assert tokens["input_ids"].shape == (1, len(residues) + 2)
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states[layer][0]
    return np.mean([state.numpy() for state in states[1:-1]], axis=0)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("batch_residues", [1, 30, 10_000])
def test_the_vectors_are_those_of_one_protein_at_a_time(
    layer: int, batch_residues: int, folder: Path, pair: Pair, tmp_path: Path
) -> None:
    fasta = write_fasta(tmp_path / "a.fa")
    out = protein_vectors(
        fasta, tmp_path / "a_gene.h5", model=folder, layer=layer, batch_residues=batch_residues, device="cpu"
    )
    assert out == tmp_path / "a_gene.h5"
    names, vectors = read_gene_vectors(out)
    assert names == GENES
    assert vectors.shape == (len(GENES), 16)
    first = dict(reversed(PROTEINS))
    expected = np.stack([one_by_one(pair, first[gene], layer) for gene in GENES])
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(np.subtract.outer(expected[:, 0], expected[:, 0])).max() > 0.01


def test_the_state_of_the_last_layer_is_the_normalised_one(pair: Pair) -> None:
    """What the oracle above and the original implementation call layer 3 of 3."""
    model, tokenizer = pair
    seen: list[Any] = []
    hook = model.encoder.layer[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        output = model(**tokenizer("MKTAY", return_tensors="pt"), output_hidden_states=True)
        hook.remove()
        state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        torch.testing.assert_close(output.hidden_states[-1], model.encoder.emb_layer_norm_after(state))
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    assert not torch.allclose(state, output.last_hidden_state)


@pytest.mark.parametrize("longest", [1, 5, 20, 48, 49])
def test_long_proteins_are_cut(longest: int, pair: Pair, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fa")
    out = protein_vectors(fasta, tmp_path / "a.h5", model=pair, layer=2, max_residues=longest, device="cpu")
    expected = [one_by_one(pair, dict(reversed(PROTEINS))[gene], 2, longest) for gene in GENES]
    np.testing.assert_allclose(read_gene_vectors(out)[1], expected, rtol=1e-5, atol=1e-5)


def test_the_mean_over_all_proteins_of_a_gene(pair: Pair, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fa")
    names, vectors = read_gene_vectors(protein_vectors(fasta, tmp_path / "a.h5", model=pair, layer=2, combine="mean"))
    assert names == GENES
    for gene, vector in zip(names, vectors, strict=True):
        proteins = [one_by_one(pair, sequence, 2) for owner, sequence in PROTEINS if owner == gene]
        np.testing.assert_allclose(vector, np.mean(proteins, axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".fa.gz", ".fa"])
def test_files_may_be_compressed_and_of_any_line_length(suffix: str, pair: Pair, tmp_path: Path) -> None:
    expected = protein_vectors(write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5", model=pair, layer=1)
    fasta = write_fasta(tmp_path / f"b{suffix}", width=60)
    if suffix == ".fa":
        fasta.write_bytes(b"\r\n" + fasta.read_bytes().replace(b"\n", b"\r\n"))
    found = protein_vectors(str(fasta), str(tmp_path / "b.h5"), model=pair, layer=1)
    assert read_gene_names(found) == read_gene_names(expected)
    np.testing.assert_array_equal(read_gene_vectors(found)[1], read_gene_vectors(expected)[1])


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_is_passed_stays_as_it_is(training: bool, folder: Path, tmp_path: Path) -> None:
    model, tokenizer = EsmModel.from_pretrained(folder), EsmTokenizer.from_pretrained(folder)
    model.train(training)
    layers, norm, state = list(model.encoder.layer), model.encoder.emb_layer_norm_after, model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    protein_vectors(write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5", model=(model, tokenizer), layer=1)
    assert list(model.encoder.layer) == layers
    assert model.encoder.emb_layer_norm_after is norm
    assert model.training is training
    assert not any(parameter.is_inference() for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_failure_puts_the_model_back_and_writes_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        msg = "out of memory"
        raise RuntimeError(msg)

    fasta = write_fasta(tmp_path / "a.fa")
    monkeypatch.setattr(pair[0].embeddings, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        protein_vectors(fasta, tmp_path / "a.h5", model=pair, layer=1)
    assert len(pair[0].encoder.layer) == N_LAYERS
    assert [path.name for path in tmp_path.iterdir()] == ["a.fa"]


def test_what_exists_is_replaced_only_when_asked(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fasta, out = write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5"
    out.write_text("mine", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read_fasta", None)  # it is refused before anything is read
        with pytest.raises(FileExistsError, match="a.h5 exists already.*overwrite=True"):
            protein_vectors(fasta, out, model=pair)
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            protein_vectors(fasta, tmp_path / "nowhere" / "a.h5", model=pair)
    assert out.read_text(encoding="utf-8") == "mine"
    protein_vectors(fasta, out, model=pair, layer=1, overwrite=True)
    assert read_gene_names(out) == GENES


HEADER = ">P1 pep gene:G1.1 x\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "a.fa holds no sequences"),
        ("\n\n", "a.fa holds no sequences"),
        ("MKT\n", "a.fa begins with 'MKT"),
        (">P1 pep gene_symbol:TP53\nMKT\n", "the header 'P1 pep gene_symbol:TP53' has no 'gene:'"),
        (f"{HEADER}MKT\n>P2 other\nMKT\n", "the header 'P2 other' has no 'gene:'.*Ensembl"),
        (">P1 gene: x\nMKT\n", "has no 'gene:'"),
        (f"{HEADER}>P2 gene:G2\nMKT\n", "the entry 'P1 pep gene:G1.1 x' has no sequence"),
        (f"{HEADER}MKT\n>P2 gene:G2\n\n", "the entry 'P2 gene:G2' has no sequence"),
        (f"{HEADER}MK1T\n", "the sequence of 'P1 pep gene:G1.1 x' holds '1'"),
        (f"{HEADER}ATGGCN\n>P2 gene:G2\nacgt\n", "holds nucleotides .only A, C, G, N, T.*pep.all"),
        (">P1 gene:a/b\nMKT\n", "The gene id 'a/b' at position 0 cannot be stored"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        ("<html></html>", "is a web page"),
    ],
)
def test_files_that_are_no_proteins(text: str, match: str, pair: Pair, tmp_path: Path) -> None:
    fasta = tmp_path / "a.fa"
    with pytest.raises(FileNotFoundError, match="There is no file .*a.fa"):
        protein_vectors(fasta, tmp_path / "a.h5", model=pair)
    fasta.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match):
        protein_vectors(fasta, tmp_path / "a.h5", model=pair, layer=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fa"]


@pytest.mark.parametrize("cut", [5, 40, -8, -1])
def test_a_compressed_file_that_is_cut_off(cut: int, pair: Pair, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fa.gz")
    fasta.write_bytes(fasta.read_bytes()[:cut])
    with pytest.raises(ValueError, match="a.fa.gz is no readable FASTA file .*cut off or damaged"):
        protein_vectors(fasta, tmp_path / "a.h5", model=pair)
    fasta.write_bytes(b">P1 gene:G1\nMK\xff\n")
    with pytest.raises(ValueError, match="a.fa.gz is no readable FASTA file"):
        protein_vectors(fasta, tmp_path / "a.h5", model=pair)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layer": 4}, "layer=4 is out of range: the model has 3 layers, pass layer=1 to layer=3"),
        ({"layer": 0}, "layer=0 is out of range"),
        ({}, "layer=33 is out of range"),
        ({"layer": 1, "combine": "median"}, "combine='median' is not known; use 'first' or 'mean'"),
        ({"layer": 1, "max_residues": 0}, "max_residues must be at least 1, got 0"),
        ({"layer": 1, "batch_residues": -1}, "batch_residues must be at least 1, got -1"),
        ({"layer": 1, "device": "tpu"}, "device='tpu' is not a torch device"),
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_bad_options(
    options: dict[str, Any], match: str, loaded: bool, folder: Path, pair: Pair, tmp_path: Path
) -> None:
    fasta = write_fasta(tmp_path / "a.fa")
    with pytest.raises(ValueError, match=match):
        protein_vectors(fasta, tmp_path / "a.h5", model=pair if loaded else folder, **options)
    assert not (tmp_path / "a.h5").exists()


def test_models_that_are_no_esm(folder: Path, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fasta, out = write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5"
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert' is of type 'bert'; expected the name of an ESM-2 model"):
        protein_vectors(fasta, out, model=tmp_path / "bert", layer=1)
    masked = EsmForMaskedLM.from_pretrained(folder)
    with pytest.raises(TypeError, match=r"EsmForMaskedLM, EsmTokenizer; expected \(EsmModel, tokenizer\).*\.esm"):
        protein_vectors(fasta, out, model=(masked, pair[1]), layer=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="The model '.*empty' has no config.json; expected"):
        protein_vectors(fasta, out, model=tmp_path / "empty", layer=1)
    monkeypatch.setattr(scfm.settings, "offline", True)
    with pytest.raises(ValueError, match=r"Cannot load the model 'no/such-model' .*facebook/esm2_t36_3B_UR50D"):
        protein_vectors(fasta, out, model="no/such-model", layer=1)
    assert not out.exists()


def test_weights_that_are_missing_are_not_made_up(pair: Pair, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in pair[0].state_dict().items() if "encoder.layer.1.output" not in name}
    pair[0].save_pretrained(tmp_path / "esm", state_dict=state)
    pair[1].save_pretrained(tmp_path / "esm")
    with pytest.raises(ValueError, match=r"lacks 2 weights of ESM-2, such as encoder.layer.1.output.dense.bias"):
        protein_vectors(write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5", model=tmp_path / "esm", layer=1)


def test_a_tokenizer_of_another_model(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:4], *"BCDEFGHIJ" * 5, *VOCABULARY[4:]]), "utf-8")
    other = EsmTokenizer(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match="The tokenizer has no token for '.' among the 33 of the model"):
        protein_vectors(write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5", model=(pair[0], other), layer=1)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "scfm-tools\[esm\]"'):
        protein_vectors(write_fasta(tmp_path / "a.fa"), tmp_path / "a.h5")
