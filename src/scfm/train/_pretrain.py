"""Pretraining, from files to the folder of a model."""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import typed
from scfm._lock import hold
from scfm._package import pip_install
from scfm._paths import atomic, check_new, check_writable, read_json
from scfm._text import some
from scfm.train.config import Pretraining, differences, plain, read_config
from scfm.train.quiet import own_state, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from scfm.train.plan import Plan

__all__ = ["pretrain"]

logger = logging.getLogger("scfm")

RUN_FILE = "run.json"


@typed
def pretrain(
    files: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | Pretraining | None = None,
    family: str | None = None,
    base: str | Path | None = None,
    steps: int | None = None,
    gene_vectors: str | Path | pd.DataFrame | None = None,
    seed: int | None = None,
    dry_run: bool = False,
) -> Path | dict[str, Any]:
    """Train a model on files of counts, from new weights or from those of another model.

    Cells are drawn, changed and masked by the seed and the number of the step alone. So the same call goes on where an
    interrupted one stopped, and on a CPU with one process it ends with the same weights, bit by bit.

    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    files
        Files with counts, of any format that verbs read, patterns such as ``"atlas/*.h5ad"``, or stores. Their genes may
        differ.
    out
        Folder of the trained model to write. Checkpoints and logs (CSV, TensorBoard) are kept in ``<out>.training``.
    config
        The run: a YAML file, a mapping or a :class:`scfm.train.config.Pretraining`, whose docstring lists the keys.
    family, base, steps, seed
        As the keys of the config, which they override.
    gene_vectors
        Vectors from which those of genes start, with gene ids as index; or a file of them.
    dry_run
        Say how long it would take, and train nothing.

    Returns
    -------
    ``out``, which :func:`scfm.model.load` takes; its card holds the data with hashes and terms, the run and loss curves.
    With ``dry_run`` a dictionary of ``files``, ``cells``, ``genes``, ``parameters``, ``steps``, ``tokens`` (of all steps),
    ``tokens_per_step``, ``seconds`` and ``bytes`` (of memory), by a few steps that are computed and thrown away.

    Raises
    ------
    ImportError
        If a package of the extra is missing.
    ValueError
        If a key or a value of the config is not known, no file has a gene in common with the model, a file has no cells
        or other values than counts, a vocabulary does not fit the weights, or ``<out>.training`` is of another run.
    TypeError
        If the family cannot be trained, or an objective does not fit it.
    FileNotFoundError, FileExistsError, OSError
        If a file is missing, ``out`` is there already, or nothing can be written, also for want of room. The last
        checkpoint stays whole.
    TimeoutError
        If another process is training the same model.

    Examples
    --------
    >>> import scfm, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> scfm.datasets.pbmc68k()[:100].write_h5ad(f"{folder}/blood.h5ad")
    >>> small = {"architecture": {"n_layers": 1, "hidden_size": 32}, "genes": {"source": "scfm-mini"}}
    >>> trained = scfm.train.pretrain(
    ...     f"{folder}/blood.h5ad", out=f"{folder}/mine", family="scfm_mini", steps=2, config=small
    ... )
    >>> scfm.model.load(trained).n_features
    32
    """
    if isinstance(files, str | Path):
        files = [files]
    listed = None if files is None else [str(path) for path in files]
    texts = {"out": out, "base": base, "gene_vectors": gene_vectors if isinstance(gene_vectors, str | Path) else None}
    given: dict[str, Any] = {name: None if value is None else str(value) for name, value in texts.items()}
    run = read_config(config, files=listed, family=family, steps=steps, seed=seed, **given)
    _check_given(run)
    _check_extra()
    folder = Path(run.out).expanduser()
    check_new(folder, parents=True, hint="remove it first")
    work = folder.with_name(f"{folder.name}.training")
    with _at_work(work, dry_run=dry_run) as work, quiet(), own_state():
        from scfm.train.plan import Plan

        vectors = None if gene_vectors is None or isinstance(gene_vectors, str | Path) else gene_vectors
        if vectors is not None:
            run = replace(run, gene_vectors=f"a table, sha256 {_digest_of(vectors)}")
        plan = Plan.of(run, folder, work, vectors)
        if dry_run:
            return plan.estimate()
        _check_same_run(work / RUN_FILE, plan)
        return plan.carry_out()


def _digest_of(vectors: pd.DataFrame) -> str:
    """Hash of the names and vectors of genes, by which a table is known again."""
    names = "\n".join(vectors.index.astype(str)).encode()
    return sha256(names + np.ascontiguousarray(vectors.to_numpy(np.float32)).tobytes()).hexdigest()


def _check_given(run: Pretraining) -> None:
    for name, what in (("files", "files with counts"), ("out", "the folder of the model to write")):
        if not getattr(run, name):
            msg = f"{name} is missing: name {what}, in the call or in the config."
            raise ValueError(msg)
    if not Path(run.out).name:
        msg = f"out={run.out!r} is no name of a folder."
        raise ValueError(msg)


def _check_extra() -> None:
    missing = [name for name in ("lightning", "tensorboard") if find_spec(name) is None]
    if missing:
        msg = f"Training needs the package {some(missing)}: {pip_install('train')}."
        raise ImportError(msg)


def _rank() -> int:
    """Number of this process among those that train together."""
    ranks = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    return next((int(rank) for rank in ranks if rank.isdecimal()), 0)


@contextmanager
def _at_work(work: Path, *, dry_run: bool) -> Iterator[Path]:
    """Have the folder of the run for this process, or for those that train together."""
    if dry_run:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    is_new = not work.exists()
    work.mkdir(parents=True, exist_ok=True)
    check_writable(work)
    if _rank():
        yield work
        return
    try:
        with _held(work):
            yield work
    finally:
        if is_new and not (work / RUN_FILE).exists():  # something was wrong before the run began
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """Keep others from training in a folder meanwhile."""
    try:
        held = hold(work / "lock", wait=0)
    except TimeoutError as error:
        msg = f"Another process is training in {work}; wait for it, or choose another out=."
        raise TimeoutError(msg) from error
    with held:
        if not (work / RUN_FILE).exists():  # what a call has left that found something wrong
            with hold(work / "start.lock"):
                shutil.rmtree(work / "start", ignore_errors=True)
                (work / "start.safetensors").unlink(missing_ok=True)
        yield


def _check_same_run(path: Path, plan: Plan) -> None:
    """Note what the run is, or compare with what was noted."""
    wanted = json.loads(json.dumps({**plain(plan.run), "files": plan.facts}))
    if not path.exists():
        if not _rank():
            with atomic(path) as new:
                new.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    changed = differences(read_json(path), wanted)
    if changed:
        msg = (
            f"{path.parent} belongs to another run, which differs in {some(changed)}. Call it as before to go on, or remove "
            "the folder to start anew."
        )
        raise ValueError(msg)
