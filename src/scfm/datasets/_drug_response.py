"""Cell lines with their expression and the concentrations of drugs that inhibit them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._text import some

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

__all__ = ["TCGA_TYPES", "drug_response"]

logger = logging.getLogger("scfm")

# fmt: off
TCGA_TYPES = [
    "ALL", "BLCA", "BRCA", "CESC", "DLBC", "LIHC", "LUAD", "ESCA", "GBM", "HNSC", "KIRC", "LAML", "LCML", "LGG", "LUSC",
    "MESO", "MM", "NB", "OV", "PAAD", "SCLC", "SKCM", "STAD", "THCA", "COAD/READ",
]
# fmt: on
"""Cancer types that DeepCDR and scCello take, in the order in which they split them."""


@typed
def drug_response(
    expression: pd.DataFrame | str | Path,
    ic50: pd.DataFrame | str | Path,
    annotations: pd.DataFrame | str | Path,
    *,
    drugs: pd.DataFrame | str | Path | None = None,
) -> AnnData:
    """Join the tables of a drug screen in cell lines, as DeepCDR and the drug response task of scCello do.

    The tables are those of the DeepCDR repository (Liu et al. 2020, doi:10.1093/bioinformatics/btaa822), made from CCLE
    and GDSC; others of the same form will do. The result is ready for :func:`scfm.tl.embed` and
    :func:`scfm.tl.drug_response`.

    Parameters
    ----------
    expression
        Lines x genes, with gene symbols or Ensembl ids as column names, as a table or the path of a ``.csv`` file:
        ``genomic_expression_561celllines_697genes_demap_features.csv``. Values must not be negative. Those of DeepCDR
        are logarithmic; as upstream does, models take them for counts, and :func:`scfm.tl.embed` warns about it.
    ic50
        Drugs x lines, logarithm of the IC50, empty where it was not measured: ``GDSC_IC50.csv``.
    annotations
        A row for each line with the columns ``depMapID`` (its name in the other tables) and ``tcga_code``, as a table
        or the path of a tab-separated file: ``Cell_lines_annotations_20181226.txt``. The last row of a line counts.
    drugs
        Drugs of the screen with the columns ``drug_id``, ``Name`` and ``PubCHEM``, as a table or the path of a ``.csv``
        file: ``1.Drug_listMon Jun 24 09_00_55 2019.csv``. Then drugs without a PubChem number are left out, as upstream
        does. What follows the colon in a name of ``ic50`` (``GDSC:1004``) is taken for the ``drug_id``.

    Returns
    -------
    The lines that ``expression``, ``ic50`` and ``annotations`` share, in the order of ``ic50``.

    ``.X`` : float32, dense
        ``expression``.
    ``.obs['tcga']`` : categorical
        Cancer type, missing if it is none of the 25 that upstream takes.
    ``.obsm['ic50']`` : DataFrame of float64, lines x drugs
        ``ic50``, NaN where it was not measured.
    ``.uns['drugs']`` : DataFrame
        ``name`` and ``pubchem`` of the drugs, with ``drugs`` only.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the tables share no line, a line or drug occurs twice, a drug is not in ``drugs``, or expression is missing
        or negative.

    Examples
    --------
    >>> import pandas as pd, scfm
    >>> lines = ["L1", "L2"]
    >>> expression = pd.DataFrame({"TP53": [1.0, 2.0], "MYC": [0.0, 3.0]}, index=lines)
    >>> ic50 = pd.DataFrame({"L1": [0.5], "L2": [float("nan")]}, index=["drug A"])
    >>> annotations = pd.DataFrame({"depMapID": lines, "tcga_code": ["LUAD", "SARC"]})
    >>> adata = scfm.datasets.drug_response(expression, ic50, annotations)
    >>> adata.obs["tcga"].tolist(), adata.obsm["ic50"]["drug A"].tolist()
    (['LUAD', nan], [0.5, nan])
    """
    import anndata as ad

    values = _table(expression, "expression")
    response = _table(ic50, "ic50")
    types = _types_of(annotations)
    lines = [line for line in response.columns if line in values.index and line in types.index]
    if not lines:
        msg = (
            f"The tables share no line: rows of expression are {some(map(repr, values.index), 3)}, columns of ic50 "
            f"{some(map(repr, response.columns), 3)}, annotated {some(map(repr, types.index), 3)}. A table may need to be transposed (.T)."
        )
        raise ValueError(msg)
    x = values.loc[lines].to_numpy(np.float32)
    bad = ~(np.isfinite(x) & (x >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        msg = (
            f"expression of {values.columns[column]!r} in {lines[row]!r} is {x[row, column]}; need values of 0 or more."
        )
        raise ValueError(msg)
    uns = {}
    if drugs is not None:
        uns["drugs"] = _drugs_of(drugs, response.index)
        response = response.loc[uns["drugs"].index]
    obs = pd.DataFrame({"tcga": pd.Categorical(types[lines], categories=TCGA_TYPES)}, index=lines)
    measured = response[lines].T
    logger.info(
        "%d lines (of %d with expression), %d of them of a known cancer type; %d drugs, %d measurements",
        *(len(lines), len(values), obs["tcga"].notna().sum(), len(response), measured.notna().sum().sum()),
    )
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=values.columns), obsm={"ic50": measured}, uns=uns)


def _table(source: pd.DataFrame | str | Path, name: str) -> pd.DataFrame:
    """A table of numbers with row names."""
    table = source if isinstance(source, pd.DataFrame) else pd.read_csv(source, index_col=0)
    table = table.set_axis(table.index.astype(str), axis=0).set_axis(table.columns.astype(str), axis=1)
    for axis in (table.index, table.columns):
        if not axis.is_unique:
            msg = f"{name} holds {some(map(repr, axis[axis.duplicated()].unique()), 3)} twice; names of rows and columns must be unique."
            raise ValueError(msg)
    try:
        return table.astype(np.float64)
    except ValueError as error:
        msg = f"{name} must hold numbers, beside the names of rows and columns: {error}."
        raise ValueError(msg) from error


def _columns(source: pd.DataFrame | str | Path, name: str, separator: str, *columns: str) -> pd.DataFrame:
    """Columns of strings."""
    if isinstance(source, pd.DataFrame):
        table = source
    else:
        table = pd.read_csv(source, sep=separator, dtype=str, keep_default_na=False)
    if missing := [column for column in columns if column not in table]:
        msg = f"{name} has no column {missing}; found {list(table.columns)}."
        raise KeyError(msg)
    return table[list(columns)].astype(str)


def _types_of(annotations: pd.DataFrame | str | Path) -> pd.Series:
    table = _columns(annotations, "annotations", "\t", "depMapID", "tcga_code")
    return table.drop_duplicates("depMapID", keep="last").set_index("depMapID")["tcga_code"]


def _drugs_of(drugs: pd.DataFrame | str | Path, names: pd.Index) -> pd.DataFrame:
    """Name and PubChem number of those drugs that have one, in the order of ``names``."""
    table = _columns(drugs, "drugs", ",", "drug_id", "Name", "PubCHEM").drop_duplicates("drug_id", keep="last")
    found = table.set_index("drug_id").reindex(names.str.rpartition(":").get_level_values(-1))
    if found["Name"].isna().any():
        msg = f"drugs has no {some(map(repr, names[found['Name'].isna()]), 3)}; its drug_id are {some(map(repr, table['drug_id']), 3)}."
        raise ValueError(msg)
    found = found.set_axis(names, axis=0).set_axis(["name", "pubchem"], axis=1)
    return found[found["pubchem"].str.isdigit()]
