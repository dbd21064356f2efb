"""Turn published weights into one self-contained folder."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._checks import typed
from scfm._paths import atomic, check_new
from scfm._text import some
from scfm.genes.vocabulary import vocabulary_files
from scfm.model._published_folder import WEIGHTS_FILE, PublishedFolder
from scfm.weights.archive import unpack
from scfm.weights.card import CARD_FILE
from scfm.weights.tensors import open_tensors, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scfm.model.published import Dictionaries
    from scfm.weights import ModelCard

__all__ = ["convert", "convert_known"]

ARCHIVES = (".tar", ".tar.gz", ".tgz")


@typed
def convert(
    source: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    dictionaries: str | Path | Sequence[str | Path] | None = None,
) -> Path:
    """Convert published weights and gene dictionaries into one folder without pickles.

    The folder holds ``model.safetensors`` (a copy, where the source has one), ``vocabulary.tsv``, ``aliases.tsv`` and
    ``card.json``, and :func:`scfm.model.load` takes it without further arguments. It appears only when it is complete.

    Parameters
    ----------
    source
        Folder of published weights with their ``config.json``, or the ``.tar`` or ``.tar.gz`` that holds one.
    out
        Folder to write; it must not exist, or be empty.
    family, dictionaries
        As in :func:`scfm.model.load`.

    Returns
    -------
    The path of ``out``.

    Raises
    ------
    FileExistsError
        If ``out`` holds something already.
    ValueError, FileNotFoundError
        As :func:`scfm.model.load`.
    """
    return convert_known(Path(source), Path(out), family, dictionaries, None)


def convert_known(
    source: Path, out: Path, family: str | None, dictionaries: Dictionaries, known: ModelCard | None
) -> Path:
    """As :func:`convert`, for the weights of a known model if ``known`` is given."""
    out = out.expanduser()
    check_new(out, overwrite=out.is_dir() and not any(out.iterdir()), parents=True)
    folder = source.expanduser()
    if (folder / CARD_FILE).exists():
        msg = f"{folder} is a converted model already; load it as it is."
        raise ValueError(msg)
    packed = folder.is_file() and folder.name.endswith(ARCHIVES)
    if not folder.is_dir() and not packed:
        msg = (
            f"There is no folder {folder}; convert takes the folder (or tar file) of published weights and config.json."
        )
        raise FileNotFoundError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if packed:
            room = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent))
            folder = unpack(folder, Path(room))
        _write(PublishedFolder(folder, family), dictionaries, known, out)
    return out


def _write(published: PublishedFolder, dictionaries: Dictionaries, known: ModelCard | None, out: Path) -> None:
    model = published.open(dictionaries, known)
    _check_finite(model.tensors, published.weights)
    with atomic(out) as work:
        work.mkdir()
        if published.weights.suffix == ".safetensors":
            shutil.copyfile(published.weights, work / WEIGHTS_FILE)
        else:
            _save(open_tensors(published.weights), work / WEIGHTS_FILE)
        model.vocabulary.save(work)
        hashes = {"weights_sha256": sha256(work / WEIGHTS_FILE), "vocabulary_sha256": sha256(*vocabulary_files(work))}
        model.card.with_(**hashes).write(work)
        work.chmod(0o755)


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise a ValueError for weights with NaN or infinity, one tensor in memory at a time."""
    import torch

    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        msg = f"{path} holds weights that are not finite: {some(bad)}. The file is damaged; fetch it again."
        raise ValueError(msg)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, each with memory of its own (tied ones share it in a PyTorch file)."""
    from safetensors.torch import save_file

    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)
