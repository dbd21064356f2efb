"""What is planted is found, and nothing else."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm
from scfm.metrics.shift_tests import paired
from scfm.metrics.shifts import Shifts
from scfm.model.arguments import Arguments
from scfm.testing import write_geneformer

N_GENES, DECIDES = 20, "ENSG00000000007"


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """A state that one gene decides, and counts that know nothing of it."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (80, N_GENES)).astype(np.float32)
    sick = np.arange(80) % 2 == 0
    counts[:, 6] = np.where(sick, 1 + rng.poisson(2.0, 80), 0)
    obs = pd.DataFrame(
        {"state": np.where(sick, "sick", "well"), "donor_id": np.arange(80) // 2 % 10},
        index=[f"c{i}" for i in range(80)],
    )
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
    return ad.AnnData(sparse.csr_matrix(counts), obs, var)


@pytest.fixture(scope="module")
def trained(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Geneformer whose <cls> was trained to tell the states apart."""
    torch.manual_seed(0)
    folder = write_geneformer(tmp_path_factory.mktemp("model"), n_genes=N_GENES, n_layers=2, max_tokens=32)
    model = scfm.model.load(folder)
    with model.session(cells, Arguments(hidden_layer=0, device="cpu", dtype="float32")) as session:
        network = session.networks()[0]
        batches = list(session.batches(16))
        sick = torch.from_numpy((cells.obs["state"] == "sick").to_numpy()).float()
        head = torch.nn.Linear(model.n_features, 1)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 3e-3)
        for _ in range(40):
            for batch in batches:
                hidden = network(torch.from_numpy(batch.tokens), batch.lengths, first_only=True)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(head(hidden)[:, 0], sick[batch.rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert loss.item() < 0.1
    return model


@pytest.mark.parametrize("donors_key", [None, "donor_id"])
def test_the_gene_that_decides_comes_first(trained: Any, cells: ad.AnnData, donors_key: str | None) -> None:
    cells = cells.copy()
    states = {"states_key": "state", "start": "sick", "goal": "well"}
    scfm.tl.perturb(cells, trained, hidden_layer=0, device="cpu", **states)
    if donors_key is None:
        del cells.obs["donor_id"]
    scfm.tl.perturb_stats(cells, donors_key=donors_key)
    table = scfm.get.perturb_df(cells)
    first = table.iloc[0]
    assert first["names"] == DECIDES
    assert first["direction"] == "towards"
    assert first["pvals_adj"] < 0.05
    assert first["effect"] > 3 * table["effect"].iloc[1:].abs().max()


def test_screens_without_an_effect_find_nothing() -> None:
    """Shifts permuted within each cell: of 200 screens at a false discovery rate of 5 %, 10 may find something by chance."""
    n_cells, n_genes = 40, 50
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = rng.gamma(2.0, 0.01, n_cells)[:, None] * rng.standard_t(
            3, n_genes
        )  # cells of their own size, heavy tails
        values = rng.permuted(own, axis=1)
        present = rng.random(values.shape) < 0.7
        rows, genes = present.nonzero()
        shifts = Shifts(rows, genes, values[present], pd.RangeIndex(n_genes).astype(str))
        pvals = paired(shifts, None)[1]
        found += (np.sort(pvals) <= 0.05 * np.arange(1, n_genes + 1) / n_genes).any()
    assert found <= 16
