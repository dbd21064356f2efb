"""The contract of a model: the rules that every family keeps, as one function."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from scfm.testing._rules import LONGEST, RULES, NotOfferedError, Subject
from scfm.testing._small_cells import cells_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from scfm.model import FoundationModel

__all__ = ["check_model"]


def check_model(model: FoundationModel, *, exempt: Collection[str] = (), **arguments: Any) -> tuple[str, ...]:
    """Check that a model keeps the rules of scfm, on a few cells with genes of its vocabulary.

    The rules, by name:

    ``result``
        One finite float32 vector per cell, different between cells, and bit-equal on a second call.
    ``batches``
        A cell alone gives what it gives among others, for all sizes of blocks and batches and numbers of threads.
    ``cell order``, ``gene order``
        Permuted cells give permuted rows; permuted genes change nothing.
    ``unknown genes``
        Genes unknown to the model change nothing.
    ``containers``
        Dense, CSR, CSC and integer matrices, views, backed files, paths and MuData give the same.
    ``empty cells``
        A cell without genes has a finite row if the model's ``embeds_empty`` is set, else NaN; it is counted, and does
        not affect other cells.
    ``bad input``
        Negative, missing and infinite values and data without a known gene raise a ValueError, and nothing is stored.
    ``unchanged input``
        ``X``, ``layers``, ``raw``, ``obs`` and ``var`` are not changed.
    ``provenance``
        Embeddings and ``params`` survive a round trip through ``.h5ad`` and ``.zarr`` files.
    ``devices``
        Several devices give what one gives: two copies on the CPU, and all CUDA devices.
    ``linear layers``
        Every :class:`torch.nn.Linear` whose weights matter is called, so that hooks and adapters take effect.
    ``genes``
        Means of genes are means of the states of genes; for a model with ``pooling="gene"``.
    ``scores``
        Log-likelihoods of a cell depend on that cell; for a model that :func:`scfm.tl.score` takes.
    ``masked genes``
        Scores of genes depend on the cell, and are 0 to 2; for a model that :func:`scfm.tl.marker_genes` takes.
    ``perturbed genes``
        Changed genes change the embedding of the cell that has them; for a model that :func:`scfm.tl.perturb` takes.

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
    Names of the rules that were checked: all but exempt ones and those of features that the model does not offer.

    Raises
    ------
    AssertionError
        If a rule is broken; the message says which and how.
    ValueError
        If ``exempt`` holds an unknown rule.

    Examples
    --------
    >>> import scfm
    >>> "batches" in scfm.testing.check_model(scfm.model.load("scfm-mini"))
    True
    """
    unknown = [name for name in exempt if name not in RULES]
    if unknown:
        msg = f"exempt holds {unknown[0]!r}, which is not a rule; the rules are {', '.join(map(repr, RULES))}."
        raise ValueError(msg)
    longest = model.card.max_tokens
    defaults = {"device": "cpu", "dtype": "float32", "max_tokens": None if longest is None else min(LONGEST, longest)}
    checked = []
    for name, rule in RULES.items():
        if name not in exempt and _checked(name, rule, Subject(model, defaults | arguments, cells_of(model))):
            checked.append(name)
    return tuple(checked)


def _checked(name: str, rule: Callable[[Subject], None], subject: Subject) -> bool:
    """Check a rule; ``False`` if the model does not offer it, an AssertionError that names it if it is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the data are unusual on purpose
            rule(subject)
    except NotOfferedError:
        return False
    except Exception as error:
        found = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        msg = f"{subject.model.card.id} breaks the rule {name!r}: {found}"
        raise AssertionError(msg) from error
    return True
