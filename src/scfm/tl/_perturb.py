"""What happens to cells when genes are deleted, overexpressed, inhibited or activated, as a model sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scfm._checks import check_least, typed
from scfm._docs import with_parameters
from scfm._keys import EMBEDDINGS, PARAMS, PERTURB, STATES, check_key
from scfm.model import FoundationModel, load
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers
from scfm.tasks import Effect, Kind  # noqa: TC001  compared with arguments
from scfm.tl._perturb_genes import ALL
from scfm.tl._placing import places
from scfm.tl._screen import PERTURBED, Screen
from scfm.tl._states import StateAverage, average_states, states_of
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.run.device import Device

__all__ = ["perturb"]


@typed
@with_parameters
def perturb(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    genes: str | Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]] = ALL,
    kind: Kind = "delete",
    anchor: str | None = None,
    states_key: str | None = None,
    start: str | None = None,
    goal: str | None = None,
    alternatives: Sequence[str] | None = None,
    state_average: StateAverage = "mean",
    effect: Effect = "embedding",
    random_states: int = 0,
    gene_effects: bool = False,
    embeddings: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    n_cells: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    key_added: str = PERTURB,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | dict[str, float] | None:
    """Change genes in silico and measure how far the embedding of each cell moves, and where to.

    For each gene (or group of genes) and each cell, the cell is embedded once more with the gene deleted or moved. The
    effect is ``1 − cos(e′, e)``, with ``e`` the embedding of the cell and ``e′`` that of the changed cell. With states
    (``states_key``, ``start``, ``goal``), the cells of the start state are changed, and the effect on each state ``s``
    is the shift ``cos(e′, s) − cos(e, s)``, with ``s`` the average embedding of its cells: positive where the change brings
    the cell closer to the state (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9). ``effect="likelihood"`` measures how
    much more likely the model finds the cell.

    It takes one run of the network for every gene of every cell, so choose cells (``n_cells``) or genes (``genes``), or
    ask with ``dry_run=True`` how long it takes.

    Parameters
    ----------
    %(data)s
    model
        Id, alias, folder, or a loaded model, of a family that reads how much each gene is expressed: as ranks, as Geneformer,
        or as counts, as TranscriptFormer; others are a TypeError.
    %(perturbations)s
    effect
        ``"embedding"``, or ``"likelihood"`` for a model that :func:`scfm.tl.score` takes: the log-likelihoods of genes and
        counts in the changed cell minus those in the cell, summed over the genes that both have and that were not changed.
    random_states
        Also measure the mean shifts towards that many goals under permuted labels (of start and goal), for
        ``test="random_states"`` of :func:`scfm.tl.perturb_stats`; 200 are enough.
    gene_effects
        Also measure what happens to the states of the other genes of the cell.
    embeddings
        Also keep the embeddings of the changed cells, for :func:`scfm.get.perturbed`; takes a list of ``genes``.
    %(out)s
    %(n_perturbed)s
    dry_run
        Compute nothing, only say how much there is to compute.
    %(matrix)s
    pooling
        As for :func:`scfm.tl.embed`, except ``"gene"``. Under ``"mean"``, and ``"cell"`` of TranscriptFormer, ``e`` and
        ``e′`` are means over the genes that both have and that were not changed.
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    compat
        ``"upstream"``: as Geneformer's ``InSilicoPerturber``, which differs under ``pooling="mean"`` (without states the
        mean over genes of ``1 − cos`` of their states, with states plain means) and in cells that are too long. Of
        TranscriptFormer, it changes what it changes for :func:`scfm.tl.embed`.
    key_added
        Name of all results.
    %(copy)s
    %(options)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, the path ``out``, or with ``dry_run=True`` a dict of the numbers of
    ``cells``, ``sequences`` and ``tokens``, and ``seconds`` as far as they can be foreseen. Sets these fields:

    ``.layers['perturb' | key_added]`` : sparse float32, shape ``(n_obs, n_vars)``
        Effects of single genes. What is stored was computed. Of genes that share a token, the first has it. With states, instead,
        ``.layers['perturb_start']``, ``'perturb_goal'``, ``'perturb_alternative_1'`` and so on. Changes of likelihood, in
        nats, are in ``.layers['perturb_llh']``.
    ``.obsm['perturb' | key_added]`` : DataFrame, float32, shape ``(n_obs, n_groups)``
        Effects of groups, of genes with an anchor, and of genes that ``var`` lacks; NaN where nothing was computed. With
        states, the same names as for layers.
    ``.obs['perturb_n']`` : int
        Number of perturbations of each cell.
    ``.varp['perturb' | key_added]``, ``.varp['perturb_sd']``, ``.varp['perturb_n']`` : sparse, shape ``(n_vars, n_vars)``
        With ``gene_effects``: ``1 − cos`` of the states of a gene (column) in cell and changed cell, mean over the cells in
        which another gene (row) was changed, standard deviation, and the number of these cells. Of groups and of genes that
        ``var`` lacks, ``.varm['perturb_effects']``, ``'perturb_effects_sd'`` and ``'perturb_effects_n'``: DataFrames, shape
        ``(n_vars, n_groups)``. :func:`scfm.get.perturb_df` makes a table of them.
    ``.uns['perturb' | key_added]`` : dict
        ``params``, everything needed to repeat the run; with states, ``states``: their embeddings, a DataFrame; with
        ``random_states``, ``random_shifts``: a DataFrame with a row for each gene or group; with ``embeddings``,
        ``embeddings``.

    Raises
    ------
    %(errors)s

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:20].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["NKG7", "CD74"])
    >>> adata.layers["perturb"].shape
    (20, 765)
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling=pooling,
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        compat=compat,
        options=options,
    )
    check_key(key_added)
    check_least("random_states", random_states, 0)
    if random_states and states_key is None:
        msg = "random_states= takes states (states_key=, start=, goal=): it permutes their labels."
        raise ValueError(msg)
    loaded = load(model)
    check_offers(loaded.card, "perturber", PERTURBED)
    if effect == "likelihood":
        check_offers(loaded.card, "scorer", "has no likelihood; models of these families have")
        arguments = _of_likelihood(arguments, states_key=states_key, gene_effects=gene_effects, embeddings=embeddings)
    if dry_run:
        with loaded.count_session(data, arguments) as session:
            states = states_of(session, states_key, start, goal, alternatives)
            screen = Screen(session, genes, kind, anchor, states, n_cells, seed, effect=effect)
            return screen.workload(screen.counts())
    target = target_of(data, "perturb", modality=modality, out=out, overwrite=overwrite, copy=copy)
    n_states = 0 if states_key is None else 2 + len(alternatives or ())
    target.check_free(key_added, *places(key_added, n_states, effect))
    with loaded.count_session(target.data, arguments) as session:
        states = states_of(session, states_key, start, goal, alternatives)
        screen = Screen(
            session,
            genes,
            kind,
            anchor,
            states,
            n_cells,
            seed,
            effect=effect,
            gene_effects=gene_effects,
            embeddings=embeddings,
        )
        counts = screen.counts()
        screen.log_workload(counts)
        averages, random = None, None
        if states is not None:
            averages, random = average_states(session, states, state_average, random_states, seed)
        targets = None if averages is None else averages.to_numpy()
        task, stats = screen.run(targets, random, int(counts[:, 0].sum()))
        stored: dict[str, Any] = {PARAMS: session.params(stats) | screen.described(state_average)}
        if states is not None:
            stored[STATES] = averages
        if embeddings:
            stored[EMBEDDINGS] = screen.embedded(task)
        results = screen.placed(task, key_added, target.var_names)
    return target.store(replace(results, uns={key_added: stored | dict(results.uns)}))


def _of_likelihood(arguments: Arguments, **others: Any) -> Arguments:
    """The last layer and all genes of a cell, which likelihoods are computed from; a ValueError if something else is asked for."""
    others |= {"pooling": arguments.pooling, "hidden_layer": arguments.hidden_layer}
    given = [name for name, value in others.items() if value not in (None, False)]
    if given:
        msg = f"effect='likelihood' compares no embeddings, so {given[0]}= has no meaning; leave it out."
        raise ValueError(msg)
    return replace(arguments, pooling="gene", hidden_layer=0)
