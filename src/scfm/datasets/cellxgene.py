"""Published cells of CZ CELLxGENE Discover: find datasets, fetch their files, or take a slice of the Census."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._checks import check_least, typed
from scfm._settings import settings
from scfm._warn import warn
from scfm.datasets._cellxgene_catalogue import SPECIES, catalogue, check_online, table_of, wanted_keys
from scfm.datasets._cellxgene_files import checked_rows, fetch_all, is_done, make_room

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

__all__ = ["census", "fetch", "list_datasets"]


@typed
def list_datasets(
    *,
    species: str | Sequence[str] | None = None,
    tissue: str | Sequence[str] | None = None,
    assay: str | Sequence[str] | None = None,
    disease: str | Sequence[str] | None = None,
    suspension_type: str | Sequence[str] | None = None,
    primary: bool = True,
) -> pd.DataFrame:
    """List the datasets of CELLxGENE Discover, newest first.

    A filter takes a label or an ontology id as the catalogue has it, in any case, or a list of these, of which one must
    hold. A dataset with several species, tissues and so on is found by each. Every call fetches the whole catalogue.

    Parameters
    ----------
    species
        As ``"human"``, ``"Homo sapiens"`` or ``"NCBITaxon:9606"``.
    tissue, assay, disease
        As ``"lung"`` or ``"UBERON:0002048"``, ``["10x 3' v2", "10x 3' v3"]``, ``"normal"``.
    suspension_type
        ``"cell"``, ``"nucleus"`` or ``"na"``.
    primary
        Only datasets with cells that are published there first; some hold cells of others again.

    Returns
    -------
    One row a dataset, by ``dataset_id``: ``title``, ``collection``, ``doi``, ``species``, ``tissues``, ``assays`` and
    ``diseases`` (labels), ``cells``, ``bytes`` (missing where not known) and ``url`` of the H5AD file, ``version``,
    ``schema_version``. Sum up ``bytes`` before you :func:`fetch`.

    Raises
    ------
    ConnectionError
        If ``scfm.settings.offline`` is set, or the server does not answer.
    ValueError
        If a filter is empty or matches nothing in the whole catalogue, or the server gives something else.

    Warns
    -----
    UserWarning
        If entries of the catalogue lack what is needed, or come twice; they are left out.

    Examples
    --------
    >>> import scfm
    >>> found = scfm.datasets.cellxgene.list_datasets(species="human", tissue="lung")  # doctest: +SKIP
    """
    entries, skipped = catalogue()
    if skipped:
        msg = f"{skipped} of {skipped + len(entries)} entries of the catalogue of CELLxGENE lack what is needed or come twice; they are left out."
        warn(msg)
    asked = {
        "species": species,
        "tissue": tissue,
        "assay": assay,
        "disease": disease,
        "suspension_type": suspension_type,
    }
    wanted = {name: wanted_keys(name, values, entries) for name, values in asked.items() if values is not None}
    return table_of(
        entry
        for entry in entries
        if (entry.primary or not primary) and all(names & entry.keys(name) for name, names in wanted.items())
    )


@typed
def fetch(
    datasets: pd.DataFrame | Sequence[str] | str,
    folder: str | Path,
    *,
    workers: int = 4,
    progress: bool | None = None,
) -> list[Path]:
    """Fetch the H5AD files of datasets, several at a time.

    A file appears as ``<folder>/<dataset_id>.h5ad`` when it is whole, and then ``<dataset_id>.json`` beside it, with its
    row of the catalogue, version and sha256. What is there in the same version is not fetched again, without asking the
    network; a new version takes the place of an old one. What has come of a file stays after a failure or Ctrl-C, and the
    next call goes on from there. If one dataset fails, the others are fetched nevertheless.

    Parameters
    ----------
    datasets
        What :func:`list_datasets` returns, or some of its rows; or ids, whose rows are looked up in the catalogue.
        Offline, what is there of ids counts, in any version.
    folder
        Where the files go; made if need be.
    workers
        Files that are fetched at a time.
    progress
        Whether to show a bar; by default ``scfm.settings.progress``.

    Returns
    -------
    One path a dataset, in their order.

    Raises
    ------
    FileNotFoundError
        If files are not there and ``scfm.settings.offline`` is set.
    OSError
        If datasets could not be fetched, or there is not enough room; the message names them.
    ValueError
        If an id is none or not in the catalogue, or an address is not on ``cziscience.com`` or the server of
        ``scfm.settings.cellxgene_endpoint``; nothing is fetched then.

    Examples
    --------
    >>> import scfm
    >>> lung = scfm.datasets.cellxgene.list_datasets(species="human", tissue="lung")  # doctest: +SKIP
    >>> paths = scfm.datasets.cellxgene.fetch(lung.nsmallest(3, "bytes"), "lung")  # doctest: +SKIP
    """
    check_least("workers", workers)
    folder = Path(folder).expanduser()
    rows = checked_rows(datasets)
    todo = {name: row for name, row in rows.items() if not is_done(folder / f"{name}.h5ad", row["version"])}
    if todo and settings.offline:
        msg = (
            f"{len(todo)} of {len(rows)} datasets are not in {folder} in this version, and scfm.settings.offline is set: "
            f"{', '.join(todo)}. Fetch them once with a network (unset SCFM_OFFLINE)."
        )
        raise FileNotFoundError(msg)
    if todo:
        make_room(folder, todo)
        failed = fetch_all(folder, todo, workers, settings.progress if progress is None else progress)
        if failed:
            reasons = "".join(f"\n{name}: {error}" for name, error in failed.items())
            msg = (
                f"{len(failed)} of {len(rows)} datasets could not be fetched; the others are in {folder}. What has come is "
                f"kept; go on with scfm.datasets.cellxgene.fetch({list(failed)}, {str(folder)!r}).{reasons}"
            )
            raise OSError(msg) from ExceptionGroup("datasets that failed", list(failed.values()))
    return [folder / f"{name}.h5ad" for name in rows]


@typed
def census(
    *,
    species: str = "human",
    obs_filter: str | None = None,
    var_filter: str | None = None,
    census_version: str = "stable",
) -> AnnData:
    """Take a slice of the CELLxGENE Census, with raw counts in ``X`` and Ensembl ids as ``var_names``.

    Needs ``pip install cellxgene-census``, which brings its own way to the network. The slice comes into memory as a
    whole; :func:`fetch` brings more than that holds.

    Parameters
    ----------
    species
        As ``"human"`` or ``"Homo sapiens"``.
    obs_filter, var_filter
        Which cells and which genes, as SOMA filters: ``"tissue_general == 'lung' and is_primary_data == True"``. At
        least one must be given.
    census_version
        ``"stable"``, ``"latest"``, or a date as ``"2025-01-30"``, which always gives the same cells.

    Returns
    -------
    The slice, with the metadata of the Census in ``obs`` and ``var``.

    Raises
    ------
    ImportError
        If cellxgene-census is not installed.
    ConnectionError
        If ``scfm.settings.offline`` is set.
    ValueError
        If no filter is given, or the Census does not have the species.

    Examples
    --------
    >>> import scfm
    >>> lung = scfm.datasets.cellxgene.census(obs_filter="tissue == 'lung' and donor_id == 'D1'")  # doctest: +SKIP
    """
    if obs_filter is None and var_filter is None:
        msg = "The whole Census does not fit into memory; give obs_filter, as \"tissue_general == 'lung'\", or var_filter."
        raise ValueError(msg)
    check_online("The Census")
    try:
        package = import_module("cellxgene_census")
    except ImportError as error:
        msg = (
            "The Census needs cellxgene-census: pip install cellxgene-census. Without it, fetch brings whole datasets."
        )
        raise ImportError(msg) from error
    organism = SPECIES.get(species.casefold(), species)
    with package.open_soma(census_version=census_version) as source:
        adata = package.get_anndata(
            source, organism, X_name="raw", obs_value_filter=obs_filter, var_value_filter=var_filter
        )
    adata.var_names = adata.var["feature_id"].astype(str).to_list()
    return adata
