"""Gene vectors of a species that has none published, from its proteins."""

from __future__ import annotations

import gzip
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm._checks import check_least, typed
from scfm._package import pip_install
from scfm._paths import check_new
from scfm.run.device import resolve_device
from scfm.weights.archive import GZIP, read_head
from scfm.weights.gene_vectors import check_gene_names, write_gene_vectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

__all__ = ["protein_vectors"]

Combine = Literal["first", "mean"]
GENE = re.compile(r"(?:^|\s)gene:([^\s.]+)")
RESIDUES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ*-.")
NUCLEOTIDES = frozenset("ACGTUN")
UNKNOWN = "*"
EXPECTED_MODEL = (
    "expected the name of an ESM-2 model on Hugging Face, such as 'facebook/esm2_t36_3B_UR50D', or a folder with its "
    "config.json, weights and vocab.txt"
)


@typed
def protein_vectors(
    fasta: str | Path,
    out: str | Path,
    *,
    model: str | Path | tuple[Any, Any] = "facebook/esm2_t36_3B_UR50D",
    layer: int = 33,
    max_residues: int = 1022,
    combine: Combine = "first",
    batch_residues: int = 8192,
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a file of gene vectors for a species from its protein sequences with ESM-2.

    The defaults follow the published recipe of TranscriptFormer: the state after layer 33 of the 36 of ESM-2 3B,
    averaged over the first 1,022 residues of the first protein of each gene. The default model takes 11 GB to download
    and about as much memory. Needs the extra ``esm``.

    Parameters
    ----------
    fasta
        Proteins as Ensembl publishes them (``*.pep.all.fa.gz``, compressed or not): the header holds ``gene:`` and the
        id, of which the version after the first dot is dropped.
    out
        File to write, such as ``sus_scrofa_gene.h5``.
    model
        Name on Hugging Face, folder with an ESM-2 model and its ``vocab.txt``, or a pair of an ``EsmModel`` and its
        tokenizer, which are left as they are.
    layer
        Layer whose output is taken, from 1 on. That of the last layer is normalised, that of the others is not.
    max_residues
        Residues of a protein that are used; the rest is cut off.
    combine
        What stands for a gene with several proteins: the ``"first"`` in the file, or the ``"mean"`` over all.
    batch_residues
        Residues that go through the network at a time, padding included; lower it if memory runs out.
    device
        As ``"cuda:0"``; by default where a model that is passed is, else ``settings.device``, else the fastest.
    overwrite
        Replace ``out`` if it exists.

    Returns
    -------
    The path of ``out``.

    Raises
    ------
    ImportError
        If transformers is not installed.
    FileExistsError
        If ``out`` exists and ``overwrite`` is not set.
    FileNotFoundError
        If ``fasta`` or the folder of ``out`` does not exist.
    TypeError
        If ``model`` is a pair of something else.
    ValueError
        If the file holds no proteins with gene ids, the model is no ESM-2 model, or it has no such layer.

    Examples
    --------
    >>> import scfm
    >>> scfm.pp.protein_vectors("Sus_scrofa.pep.all.fa.gz", "sus_scrofa_gene.h5")  # doctest: +SKIP
    """
    out = Path(out).expanduser()
    for name, value in {"max_residues": max_residues, "batch_residues": batch_residues}.items():
        check_least(name, value)
    check_new(out, overwrite=overwrite, hint="replace a file with overwrite=True")
    proteins = _read_fasta(Path(fasta).expanduser(), max_residues, first=combine == "first")
    genes = list(dict.fromkeys(gene for gene, _ in proteins))
    check_gene_names(genes)
    place = None if device is None and isinstance(model, tuple) else resolve_device(device)
    network, tokenizer = _load(model, layer)
    with _first_layers(network, layer, place or network.device):
        vectors = _vectors(network, tokenizer, [sequence for _, sequence in proteins], batch_residues)
    if combine == "mean":
        vectors = _mean_by_gene(vectors, [gene for gene, _ in proteins], genes)
    return write_gene_vectors(out, genes, vectors, overwrite=overwrite)


def _read_fasta(path: Path, max_residues: int, *, first: bool) -> list[tuple[str, str]]:
    """Gene and residues of each protein, cut to what is used; with ``first`` of the first protein of each gene."""
    opener = gzip.open if read_head(path, "a FASTA file").startswith(GZIP) else open
    proteins: list[tuple[str, str]] = []
    seen: set[str] = set()
    letters: set[str] = set()
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for header, sequence in _records(file, path):
                found = GENE.search(header)
                if found is None:
                    msg = f"{path}: the header {header[:200]!r} has no 'gene:'; take the proteins from Ensembl (*.pep.all.fa.gz), or write 'gene:<id>' into each header."
                    raise ValueError(msg)
                _check_sequence(sequence, header, path)
                letters.update(sequence)
                if not (first and found[1] in seen):
                    proteins.append((found[1], sequence[:max_residues]))
                seen.add(found[1])
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        msg = f"{path} is no readable FASTA file ({error}): it is cut off or damaged; fetch it again."
        raise ValueError(msg) from error
    if not proteins:
        msg = f"{path} holds no sequences; expected FASTA with proteins."
        raise ValueError(msg)
    if letters <= NUCLEOTIDES:
        msg = f"{path} holds nucleotides (only {', '.join(sorted(letters))}); ESM-2 reads proteins: take the file *.pep.all.fa.gz."
        raise ValueError(msg)
    return proteins


def _records(lines: Iterable[str], path: Path) -> Iterator[tuple[str, str]]:
    """Header, without its mark, and residues in upper case of each entry of a FASTA file."""
    header: str | None = None
    parts: list[str] = []
    for line in lines:
        if line.startswith(">"):
            if header is not None:
                yield header, "".join(parts).upper()
            header, parts = line[1:].strip(), []
        elif header is not None:
            parts += line.split()
        elif line.strip():
            msg = f"{path} begins with {line[:50]!r}, expected FASTA: a header that begins with '>'."
            raise ValueError(msg)
    if header is not None:
        yield header, "".join(parts).upper()


def _check_sequence(sequence: str, header: str, path: Path) -> None:
    if not sequence:
        msg = f"{path}: the entry {header[:200]!r} has no sequence; remove it, or fetch the file again."
        raise ValueError(msg)
    strange = set(sequence) - RESIDUES
    if strange:
        msg = f"{path}: the sequence of {header[:200]!r} holds {min(strange)!r}, which is no residue; expected letters and '*'."
        raise ValueError(msg)


def _load(model: str | Path | tuple[Any, Any], layer: int) -> tuple[Any, Any]:
    """A network that has the layer, and its tokenizer."""
    try:
        import transformers
    except ImportError as error:
        msg = f"Protein vectors need transformers: {pip_install('esm')}."
        raise ImportError(msg) from error
    if isinstance(model, str | Path):
        folder = Path(model).expanduser()
        return _fetch(str(folder if folder.is_dir() else model), layer)
    if not isinstance(model[0], transformers.EsmModel):
        kinds = ", ".join(type(part).__name__ for part in model)
        msg = f"model= is a tuple of {kinds}; expected (EsmModel, tokenizer). Of an EsmForMaskedLM pass its .esm."
        raise TypeError(msg)
    _check_layer(layer, len(model[0].encoder.layer))
    return model


def _fetch(name: str, layer: int) -> tuple[Any, Any]:
    """Load a model from Hugging Face or a folder; its type and layers are checked before weights are downloaded."""
    from transformers import EsmConfig, EsmModel, EsmTokenizer

    from scfm._settings import settings

    options: dict[str, Any] = {"local_files_only": settings.offline}
    with _load_errors(name):
        config = EsmConfig.get_config_dict(name, **options)[0]
    kind = config.get("model_type")
    if kind != "esm":
        msg = (
            f"The model {name!r} {'has no config.json' if kind is None else f'is of type {kind!r}'}; {EXPECTED_MODEL}."
        )
        raise ValueError(msg)
    _check_layer(layer, config.get("num_hidden_layers", 0))
    with _load_errors(name):
        tokenizer = EsmTokenizer.from_pretrained(name, **options)
        loaded: Any = EsmModel.from_pretrained(name, add_pooling_layer=False, output_loading_info=True, **options)
    network, info = loaded
    # these are not used here, and absent from some files
    spare = ("contact_head.", "pooler.", "rotary_embeddings.", "embeddings.position_ids")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(spare) and "inv_freq" not in key)
    if missing:
        msg = f"The model {name!r} lacks {len(missing)} weights of ESM-2, such as {missing[0]}; {EXPECTED_MODEL}."
        raise ValueError(msg)
    return network.float(), tokenizer


@contextmanager
def _load_errors(name: str) -> Iterator[None]:
    """Whatever transformers raises over a missing or damaged model becomes one error that names it."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        msg = f"Cannot load the model {name!r} ({type(error).__name__}: {reason}); {EXPECTED_MODEL}."
        raise ValueError(msg) from error


def _check_layer(layer: int, n_layers: int) -> None:
    if not 1 <= layer <= n_layers:
        msg = f"layer={layer} is out of range: the model has {n_layers} layers, pass layer=1 to layer={n_layers}."
        raise ValueError(msg)


@contextmanager
def _first_layers(network: Any, layer: int, place: torch.device) -> Iterator[None]:
    """Let a network end after ``layer`` layers, in evaluation mode on ``place``, and put it back as it was."""
    encoder, home, training = network.encoder, network.device, network.training
    layers, norm = encoder.layer, encoder.emb_layer_norm_after
    try:
        encoder.layer = layers[:layer]
        # the state after the last layer is the normalised one, here as in the original implementation
        encoder.emb_layer_norm_after = norm if layer == len(layers) else None
        network.eval().to(place)
        yield
    finally:
        encoder.layer, encoder.emb_layer_norm_after = layers, norm
        network.train(training).to(home)


def _vectors(network: Any, tokenizer: Any, sequences: Sequence[str], batch_residues: int) -> NDArray[np.float32]:
    """Mean state of each protein, shape ``(n_proteins, hidden_size)``."""
    import torch
    from tqdm.auto import tqdm

    from scfm._settings import settings

    ids = _token_ids(tokenizer, set().union(*sequences), network.config.vocab_size)
    vectors = np.empty((len(sequences), network.config.hidden_size), np.float32)
    hidden = None if settings.progress is None else not settings.progress
    with (
        torch.inference_mode(),
        tqdm(total=len(sequences), unit="protein", desc="protein vectors", disable=hidden) as bar,
    ):
        for rows in _batches([len(sequence) + 2 for sequence in sequences], batch_residues):
            tokens = torch.full((len(rows), max(len(sequences[row]) for row in rows) + 2), ids["pad"])
            mask = torch.zeros_like(tokens)
            for position, row in enumerate(rows):
                found = [ids["cls"], *(ids[letter] for letter in sequences[row]), ids["eos"]]
                tokens[position, : len(found)] = torch.tensor(found)
                mask[position, : len(found)] = 1
            states = network(input_ids=tokens.to(network.device), attention_mask=mask.to(network.device))[0]
            for position, row in enumerate(rows):
                mean = states[position, 1 : len(sequences[row]) + 1].float().mean(0)
                vectors[row] = mean.cpu().numpy()
            bar.update(len(rows))
    return vectors


def _token_ids(tokenizer: Any, letters: Iterable[str], vocab_size: int) -> Mapping[str, int]:
    """Token of each residue and of what goes around a protein.

    The tokenizer itself would make one unknown token of several unknown residues in a row.
    """
    unknown = tokenizer.unk_token_id
    around = {"cls": tokenizer.cls_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    ids = {letter: unknown if letter == UNKNOWN else tokenizer.convert_tokens_to_ids(letter) for letter in letters}
    ids = {letter: unknown if token is None else token for letter, token in ids.items()} | around
    bad = [name for name, token in {**ids, "unk": unknown}.items() if token is None or not 0 <= token < vocab_size]
    if bad:
        msg = f"The tokenizer has no token for {bad[0]!r} among the {vocab_size} of the model; pass the tokenizer of this model."
        raise ValueError(msg)
    return ids


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of sequences of similar length, longest first, within a budget that includes padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _mean_by_gene(vectors: NDArray[np.float32], owners: Sequence[str], genes: Sequence[str]) -> NDArray[np.float32]:
    position = {gene: row for row, gene in enumerate(genes)}
    rows = np.asarray([position[gene] for gene in owners])
    sums = np.zeros((len(genes), vectors.shape[1]))
    np.add.at(sums, rows, vectors)
    return (sums / np.bincount(rows)[:, None]).astype(np.float32)
