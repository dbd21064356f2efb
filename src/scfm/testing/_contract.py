"""The rules that every family of models keeps, as one callable for tests."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from scfm.testing import _rules as rules
from scfm.testing._rules import LONGEST, NotOfferedError, Subject
from scfm.testing._small_cells import cells_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from scfm.model import FoundationModel

__all__ = ["RULES", "check_model"]

RULES: dict[str, Callable[[Subject], None]] = {
    "result": rules.result,
    "batches": rules.batches,
    "cell order": rules.cell_order,
    "gene order": rules.gene_order,
    "unknown genes": rules.unknown_genes,
    "containers": rules.containers,
    "empty cells": rules.empty_cells,
    "bad input": rules.bad_input,
    "caller's data": rules.callers_data,
    "provenance": rules.provenance,
    "devices": rules.devices,
    "linear layers": rules.linear_layers,
    "genes": rules.genes,
    "scores": rules.scores,
    "masked genes": rules.masked_genes,
}


def check_model(model: FoundationModel, *, exempt: Collection[str] = (), **arguments: Any) -> tuple[str, ...]:
    """Check that a model keeps the rules of scfm, on a few cells that are made of its vocabulary.

    The rules, by name:

    ``result``
        One finite float32 vector a cell, not the same for all, and the same bits a second time.
    ``batches``
        A cell alone is what it is in company, whatever the sizes of blocks and batches and the number of threads.
    ``cell order``, ``gene order``
        Permuted cells give permuted rows; permuted genes change nothing.
    ``unknown genes``
        Genes that the model does not know change nothing.
    ``containers``
        Dense, CSR, CSC and integer matrices, views, backed files, paths and MuData give the same.
    ``empty cells``
        A cell without genes has a finite row if the model's ``embeds_empty`` says so, else NaN; it is counted, and
        leaves other cells alone.
    ``bad input``
        Negative, missing and infinite values and data without a known gene are a ValueError, and nothing is stored.
    ``caller's data``
        ``X``, ``layers``, ``raw``, ``obs`` and ``var`` stay as they are.
    ``provenance``
        Embeddings and ``params`` come back from ``.h5ad`` and ``.zarr`` files as they were.
    ``devices``
        Several devices give what one gives: two copies on the CPU, and every CUDA device there is.
    ``linear layers``
        Every :class:`torch.nn.Linear` whose weights matter is called, so that hooks and adapters take effect.
    ``genes``
        Means of genes are those of the states of genes; for a model with ``pooling="gene"``.
    ``scores``
        Log-likelihoods of a cell depend on that cell; for a model that :func:`scfm.tl.score` takes.
    ``masked genes``
        Scores of genes depend on the cell, and are 0 to 2; for a model that :func:`scfm.tl.marker_genes` takes.

    Parameters
    ----------
    model
        A loaded model.
    exempt
        Names of rules that the model does not keep by design, as ``"gene order"`` for one that reads genes in the order
        of ``var``.
    **arguments
        As for :func:`scfm.tl.embed`, options of the family among them. The defaults differ from there: float32 on the
        CPU, and at most 24 tokens a cell.

    Returns
    -------
    Names of the rules that were checked: all but those exempt and those of what the model does not offer.

    Raises
    ------
    AssertionError
        If a rule is broken; the message names it, and says what was found.
    ValueError
        If ``exempt`` holds something that is no rule.

    Examples
    --------
    >>> import scfm
    >>> "batches" in scfm.testing.check_model(scfm.model.load("scfm-mini"))
    True
    """
    unknown = [name for name in exempt if name not in RULES]
    if unknown:
        msg = f"exempt holds {unknown[0]!r}, which is no rule; the rules are {', '.join(map(repr, RULES))}."
        raise ValueError(msg)
    longest = model.card.max_tokens
    defaults = {"device": "cpu", "dtype": "float32", "max_tokens": None if longest is None else min(LONGEST, longest)}
    checked = []
    for name, rule in RULES.items():
        if name not in exempt and _checked(name, rule, Subject(model, defaults | arguments, cells_of(model))):
            checked.append(name)
    return tuple(checked)


def _checked(name: str, rule: Callable[[Subject], None], subject: Subject) -> bool:
    """Whether a rule was checked; a rule that is broken, in whatever way, is an AssertionError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the data are odd by intent
            rule(subject)
    except NotOfferedError:
        return False
    except Exception as error:
        found = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        msg = f"{subject.model.card.id} breaks the rule {name!r}: {found}"
        raise AssertionError(msg) from error
    return True
