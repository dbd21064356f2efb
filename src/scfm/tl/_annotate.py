"""Cell types from an embedding."""

from __future__ import annotations

import hashlib
import logging
from itertools import cycle
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from mudata import MuData

from scfm._checks import entry_of, typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, AnnotationKeys, annotation_keys, colors_key, provenance_keys
from scfm._package import version_of
from scfm._warn import warn
from scfm._write import Results, is_mudata_file, read_frame
from scfm.annotate import Metric, Prediction, predict, predict_types
from scfm.tl._annotate_arguments import check_choices, check_source, checked_names
from scfm.tl._annotate_cells import Cells, provenance
from scfm.tl._annotate_finetuned import FINE_TUNED, FineTuned
from scfm.tl._target import Target, adata_of, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.annotate import Classifier
    from scfm.model import FoundationModel
    from scfm.ontology import CellOntology

__all__ = ["UNKNOWN", "annotate"]

logger = logging.getLogger("scfm")

Method = Literal["knn", "logistic", "linear_probe", "ontology", "finetune"]
UNKNOWN = "unknown"
"""Label of rejected cells."""
UNKNOWN_COLOR = "#d3d3d3"
WHITENED: Metric = "whitened"
MANY = 0.5
"""Share of rejected cells that calls for a warning."""
EMBEDDING = ("model", "revision", "weights_sha256", "pooling", "hidden_layer")
"""What is taken over from the provenance of the embedding."""


@typed
@with_parameters
def annotate(
    data: AnnData | MuData | str | Path,
    reference: AnnData | MuData | str | Path | None = None,
    *,
    labels_key: str,
    use_rep: str | None = None,
    model: str | Path | FoundationModel | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    method: Method = "knn",
    n_neighbors: int = 15,
    metric: Metric | None = None,
    candidates: Sequence[str] | None = None,
    ontology: CellOntology | str | Path | None = None,
    reject: float | None = None,
    batch_key: str | None = None,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
    key_added: str = "annotation",
    copy: bool = False,
) -> AnnData | MuData | Path | None:
    """Annotate cells from an embedding and labelled cells.

    Parameters
    ----------
    data
        Cells to annotate, with an embedding in ``obsm``: an AnnData or MuData, or the path of a file. The matrix is not
        read.
    reference
        Labelled cells with the same embedding, likewise. By default the cells of ``data`` that have a label are the reference,
        and only those whose label is missing (NaN) are annotated.
    labels_key
        Column of ``obs`` with the labels of the reference. Cells of the reference without a label are left out.
    use_rep
        Key of the embedding in ``obsm``, of both.
    model
        For ``"finetune"``, instead of ``use_rep``: the model that is trained on the counts of the reference.
    %(out)s
    method
        ``"knn"``: share of each label among the nearest cells. ``"logistic"``: logistic regression on whitened
        embeddings. ``"linear_probe"``: scCello's linear probe, on the embeddings as they are. ``"ontology"``:
        scCello's procedure for types that the reference does not have. ``"finetune"``: a :class:`scfm.train.CellClassifier`
        that is trained on the reference (with the extra ``scfm-tools[train]``).
    n_neighbors
        Neighbours for ``"knn"``.
    metric
        Distance for ``"knn"``. ``"whitened"``, the default: cosine after the covariance within labels is divided out, so that what
        varies in cells of one label (also between its batches) does not count. ``"cosine"``, ``"euclidean"``: of the
        embeddings as they are, as in :func:`scanpy.tl.ingest`.
    candidates
        For ``"ontology"``: two or more types to choose from, as names, exact synonyms or ids (``"CL:0000084"``) of terms. The
        reference need not have them.
    ontology
        An ontology (:func:`scfm.ontology.read_ontology`), the path of one, or ``"bundled"``. Labels must be terms of
        it, and the ids are stored, too. ``"ontology"`` needs one.
    reject
        Share of the cells of the reference (such as 0.05) that may be rejected wrongly. Cells that are less like the
        reference than this become ``"unknown"``. It is found by leaving out parts of the reference.
    batch_key
        Column of ``obs`` of the reference with batches: for ``reject``, whole batches are left out. Without it the
        limit is too strict for cells of a new batch.
    modality
        Modality of MuData objects.
    layer, use_raw, gene_key
        For ``"finetune"``: where the counts of both are, as for :func:`scfm.tl.embed`.
    training
        For ``"finetune"``: arguments of the model and its training, as ``{"freeze": True, "max_epochs": 5}``
        (:class:`scfm.train.CellClassifier` and its ``train()``).
    seed
        Seed of the linear probe and of the parts that are left out.
    key_added
        Name of the results.
    %(copy)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields. Everything but the label is NaN
    for a cell of the reference itself, and everything for a cell whose embedding is NaN.

    ``.obs[key_added]`` : category
        Label with the highest probability; ``"unknown"`` if rejected. Labels that ``data`` already has are kept.
    ``.obs[f'{key_added}_score']`` : float32
        Probability of that label, also if the cell was rejected.
    ``.obs[f'{key_added}_novelty']`` : float32
        How unlike the reference the cell is, higher is less like: 1 − cosine to the nearest mean of a label in the
        whitened space (0 to 2); for ``"ontology"`` 1 − Spearman correlation of the best candidate (0 to 2).
    ``.obs[f'{key_added}_cl']`` : category
        With an ontology: id of the term.
    ``.obsm[f'{key_added}_probabilities']`` : float32, shape ``(n_obs, n_labels)``
        Probabilities of the labels in ``params["labels"]``: shares of neighbours for ``"knn"``, of the model for
        ``"logistic"`` and ``"linear_probe"``, softmax of the Spearman correlations for ``"ontology"`` (which is flat,
        as these lie between −1 and 1).
    ``.uns[f'{key_added}_colors']`` : list of str
        Colours of the reference where it has any, else of scanpy.
    ``.uns[key_added]['params']`` : dict
        Everything needed to repeat the run.

    Raises
    ------
    KeyError
        If a column or an embedding is missing.
    FileNotFoundError
        If a file does not exist.
    ValueError
        If the embeddings come from different models, a label is no term of the ontology (the message names it), or an
        argument is out of range or place; nothing is stored then.

    Warns
    -----
    UserWarning
        If the embeddings are based on different genes, or most cells are rejected.

    See Also
    --------
    scanpy.tl.ingest : Labels of the nearest cells in a PCA of the reference.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.embed(adata, "scfm-mini")
    >>> reference, query = adata[:500].copy(), adata[500:].copy()
    >>> scfm.tl.annotate(query, reference, labels_key="bulk_labels", use_rep="X_scfm_mini")
    >>> query.obs["annotation"].mode()[0]
    'Dendritic'
    """
    keys = annotation_keys(key_added)
    names = None if candidates is None else checked_names(candidates)
    check_choices(method, names, ontology, reject, batch_key, metric)
    of_counts = {"model": model, "layer": layer, "use_raw": use_raw, "gene_key": gene_key, "training": training}
    check_source(method, use_rep, of_counts)
    if modality is not None and not (_holds_modalities(data) or _holds_modalities(reference)):
        msg = f"modality={modality!r} is for a MuData, and there is none: leave modality out."
        raise ValueError(msg)
    mine = modality if _holds_modalities(data) else None
    target = target_of(data, "annotate", modality=mine, out=out, overwrite=overwrite, copy=copy)
    if reference is None and key_added == labels_key:
        msg = f"key_added={key_added!r} would overwrite the labels of the reference; choose another name."
        raise ValueError(msg)
    columns = (keys.label, keys.score, keys.novelty, keys.term)
    target.check_free(keys.uns, *(("obs", name) for name in columns), ("obsm", keys.probabilities))
    tuned = None
    if use_rep is None:
        tuned = _tuned(target, reference, labels_key, modality, of_counts, seed)
        query, source, use_rep = tuned.data, tuned.reference, FINE_TUNED
    else:
        stored = (*provenance_keys(use_rep), colors_key(labels_key))
        query = target.frame((use_rep,), stored)
        source = query if reference is None else _reference(reference, modality, use_rep, stored)
    cells = Cells.of(query, source, labels_key, use_rep, batch_key)
    graph = _ontology(ontology)
    labels = cells.reference.labels if names is None else names
    if reject is not None and UNKNOWN in labels:
        msg = f"{UNKNOWN!r} is one of the labels and the name for rejected cells; rename it, or set it to NaN."
        raise ValueError(msg)
    terms = {} if graph is None else _terms(graph, [*cells.reference.labels, *labels])
    if method == "ontology":
        assert graph is not None
        types, ids = cells.reference.renamed(terms), _ids(labels, terms)
        found = predict_types(types, cells.query, graph, ids, reject=reject, seed=seed)
    elif tuned is not None:
        found = tuned.predict(cells, reject=reject, seed=seed)
    else:
        found = predict(
            cells.reference,
            cells.query,
            cast("Classifier", method),
            n_neighbors=n_neighbors,
            metric=metric or WHITENED,
            reject=reject,
            seed=seed,
        )
    choices: dict[str, Any] = {"method": method, "labels_key": labels_key, "use_rep": use_rep, "batch_key": batch_key}
    choices |= {"n_neighbors": n_neighbors, "metric": metric or WHITENED} if method == "knn" else {}
    choices |= {"seed": seed, "reject": reject, **_found(found, graph)}
    palette = _known_colors(source, labels_key)
    return target.store(_results(query, keys, cells, found, labels, terms, palette, choices))


def _found(found: Prediction, graph: CellOntology | None) -> dict[str, Any]:
    """Limit of rejection, and the ontology of the labels."""
    named = {"limit": found.limit, "ontology": None if graph is None else str(graph)}
    return named if graph is None else {**named, "ontology_sha256": _hash(graph)}


def _tuned(
    target: Target, reference: object, labels_key: str, modality: str | None, of_counts: Mapping[str, Any], seed: int
) -> FineTuned:
    """A classifier that is trained on the reference."""
    matrix = {name: of_counts[name] for name in ("layer", "use_raw", "gene_key")}
    training = of_counts["training"] or {}
    model = of_counts["model"]
    return FineTuned.of(
        target.data, reference, model, labels_key, matrix=matrix, modality=modality, training=training, seed=seed
    )


def _holds_modalities(data: object) -> bool:
    return is_mudata_file(Path(data)) if isinstance(data, str | PathLike) else isinstance(data, MuData)


def _reference(reference: object, modality: str | None, use_rep: str, uns: Sequence[str]) -> AnnData:
    """The cells of the reference, without their matrix if it is a file."""
    if not isinstance(reference, str | PathLike):
        return adata_of(reference, modality, "reference")
    path = Path(reference).expanduser()
    return read_frame(path, modality if is_mudata_file(path) else None, obsm=(use_rep,), uns=uns)


def _ontology(ontology: CellOntology | str | Path | None) -> CellOntology | None:
    from scfm.ontology import CellOntology, bundled, read_ontology

    if ontology is None or isinstance(ontology, CellOntology):
        return ontology
    return bundled() if ontology == "bundled" else read_ontology(ontology)


def _hash(ontology: CellOntology) -> str:
    """Hash of ids and edges, which tells two ontologies apart."""
    return hashlib.sha256("".join(ontology.ids.tolist()).encode() + ontology.graph_edges.tobytes()).hexdigest()


def _terms(ontology: CellOntology, labels: Sequence[str]) -> dict[str, str]:
    """Id of the term of each label."""
    names = list(dict.fromkeys(labels))
    return dict(zip(names, ontology.resolve(names).tolist(), strict=True))


def _ids(candidates: list[str], terms: Mapping[str, str]) -> list[str]:
    ids = [terms[name] for name in candidates]
    for id in ids:
        same = [name for name in candidates if terms[name] == id]
        if len(same) > 1:
            msg = f"candidates {', '.join(map(repr, same))} are one and the same term, {id}; keep one of them."
            raise ValueError(msg)
    return ids


def _results(
    adata: AnnData,
    keys: AnnotationKeys,
    cells: Cells,
    found: Prediction,
    labels: list[str],
    terms: Mapping[str, str],
    colors: Mapping[str, str],
    choices: Mapping[str, Any],
) -> Results:
    said = np.isfinite(found.novelty)
    best = found.probabilities.argmax(axis=1)
    texts = np.asarray(cells.own.astype(object))
    texts[cells.rows[said]] = np.array(labels, dtype=object)[best[said]]
    texts[cells.rows[found.rejected]] = UNKNOWN
    rejecting = [] if found.limit is None else [UNKNOWN]
    kinds = list(dict.fromkeys([*cells.own.categories, *labels, *rejecting]))
    obs: dict[str, Any] = {
        keys.label: pd.Categorical(texts, categories=kinds),
        keys.score: _spread(found.probabilities.max(axis=1), cells, adata.n_obs),
        keys.novelty: _spread(found.novelty, cells, adata.n_obs),
    }
    if terms or keys.term in adata.obs:  # ids of an earlier run would contradict the labels
        obs[keys.term] = pd.Categorical(pd.Series(texts).map(terms))
    n_rejected, n_unsaid = int(found.rejected.sum()), int((~said).sum())
    if n_rejected > MANY * len(cells.rows):
        warn(
            f"{n_rejected} of {len(cells.rows)} cells were rejected: they are unlike the reference as a whole, not one by "
            "one. Do both have the same genes (embed both with shared_with=)? Does the reference have "
            "batches (batch_key=)? metric='cosine' and reject=None show what the labels would be."
        )
    counts = {
        "n_reference": len(cells.reference.codes),
        "n_annotated": len(cells.rows) - n_rejected - n_unsaid,
        "n_rejected": n_rejected,
        "n_empty": cells.n_empty + n_unsaid,
    }
    made_by = {name: value for name, value in provenance(adata, choices["use_rep"]).items() if name in EMBEDDING}
    versions = {name: version_of(name) for name in ("scfm", "scikit-learn", "torch")}
    params = {**choices, **counts, "labels": np.array(labels, dtype=object), "embedding": made_by, "versions": versions}
    logger.info("annotated %d cells, rejected %d of them", len(cells.rows), n_rejected)
    return Results(
        obs=obs,
        obsm={keys.probabilities: _spread(found.probabilities, cells, adata.n_obs)},
        uns={keys.colors: _colors(kinds, colors), keys.uns: {PARAMS: params}},
    )


def _spread(values: NDArray[np.float32], cells: Cells, n_obs: int) -> NDArray[np.float32]:
    """Values of the annotated cells, among NaN for the others."""
    whole = np.full((n_obs, *values.shape[1:]), np.nan, dtype=np.float32)
    whole[cells.rows] = values
    return whole


def _known_colors(adata: AnnData, labels_key: str) -> dict[str, str]:
    """Colours that labels already have."""
    column, stored = entry_of(adata.obs, labels_key, "obs"), adata.uns.get(colors_key(labels_key))
    if stored is None or not isinstance(column.dtype, pd.CategoricalDtype):
        return {}
    return dict(zip(map(str, column.cat.categories), map(str, stored), strict=False))


def _colors(kinds: list[str], known: Mapping[str, str]) -> list[str]:
    from scanpy.plotting import palettes

    known = {UNKNOWN: UNKNOWN_COLOR, **known}
    n_new = len([kind for kind in kinds if kind not in known])
    sizes = (palettes.default_20, palettes.default_28, palettes.default_102)
    palette = next((palette for palette in sizes if len(palette) >= n_new + len(known)), palettes.default_102)
    free = cycle([color for color in palette if color not in known.values()] or palette)
    return [known[kind] if kind in known else next(free) for kind in kinds]
