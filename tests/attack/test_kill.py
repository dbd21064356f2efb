"""Kill processes that write, at random moments, and see whether the same command completes the work.

Every test prints what it found; ``TEST_PROFILE=thorough`` kills many more.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

import scfm
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.attack,
    pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:Writing zarr v2", "ignore:zarr v3 autosharding"),
]
RUNS = 40 if os.environ.get("TEST_PROFILE") == "thorough" else 3
N_OBS, KEY = 60, "X_scfm_mini"
READY = "import scfm, sys, torch; torch.set_num_threads(1); scfm.settings.threads = 1; {imports}; print(flush=True); "
EMBED = "scfm.tl.embed_store(sys.argv[1], 'scfm-mini', sys.argv[2], shard_rows=10, device='cpu', into_source=True)"
MERGE = "scfm.tl.merge_store(sys.argv[2], sys.argv[1])"
IMPORTS = "import scfm.tl"


def killed(code: str, imports: str, source: Path, out: Path, seconds: float) -> bool:
    """Run code and kill it so many seconds after it began its work; whether it still ran then."""
    command = [sys.executable, "-c", READY.format(imports=imports) + code, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"SCFM_FSYNC": "1"}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        return process.wait() != 0


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


@pytest.mark.skipif(os.name != "posix", reason="kills by a signal")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("what", ["embed", "merge"])
def test_the_same_call_completes_what_was_killed(
    what: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, found = random.Random(os.environ.get("TEST_SEED", "0")), Counter[str]()
    expected = np.asarray(scfm.model.load("scfm-mini").embed(scfm.datasets.pbmc68k()[:N_OBS].copy(), device="cpu"))
    for run in range(RUNS):
        folder = tmp_path / str(run)
        folder.mkdir()
        source, out = folder / f"cells.{kind}", folder / "emb.zarr"
        adata = scfm.datasets.pbmc68k()[:N_OBS].copy()
        adata.write_zarr(source) if kind == "zarr" else adata.write_h5ad(source)
        code, imports, longest = (EMBED, "scfm.model.load('scfm-mini')", 3.0)
        if what == "merge":
            scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=10, device="cpu")
            code, imports, longest = (MERGE, IMPORTS, 0.6)
        found["killed"] += killed(code, imports, source, out, rng.random() * longest)
        after = read(source)  # whole at every moment
        assert after.n_obs == N_OBS
        assert (KEY in after.obsm) == ("scfm_mini" in after.uns)
        found["new" if KEY in after.obsm else "old"] += 1
        found["left behind"] += len(list(folder.glob(".scfm-*")))
        scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=10, device="cpu", into_source=True)
        close(read(source).obsm[KEY], expected)
        assert not [path for path in folder.rglob(".scfm-*") if path.name != ".scfm.json"]
    with capsys.disabled():
        print(f"\n{what} into {kind}, {RUNS} runs: {dict(found)}; all completed by the same call")
