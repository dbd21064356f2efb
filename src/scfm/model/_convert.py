"""Turn published weights into one self-contained folder."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._checks import typed
from scfm._lock import hold
from scfm._paths import atomic, check_new, link_or_copy, room_beside
from scfm.model._cache import lock_path, models_folder
from scfm.model._published_folder import WEIGHTS_FILE, PublishedFolder
from scfm.model.saved import finish_folder
from scfm.weights.archive import unpack
from scfm.weights.card import CARD_FILE
from scfm.weights.tensors import check_finite, save_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfm.model.published import Dictionaries
    from scfm.weights import ModelCard

__all__ = ["HEAD_FILE", "convert", "convert_known"]

HEAD_FILE = "head.safetensors"
ARCHIVES = (".tar", ".tar.gz", ".tgz")


@typed
def convert(
    source: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    dictionaries: str | Path | Sequence[str | Path] | None = None,
    name: str | None = None,
) -> Path:
    """Convert published weights and gene dictionaries into one folder without pickles.

    The folder holds ``model.safetensors`` (a copy, where the source has one), ``vocabulary.tsv``, ``aliases.tsv`` and
    ``card.json``, and :func:`scfm.model.load` takes it without further arguments. It appears only when it is complete.

    The head of a fine-tuned model is put into ``head.safetensors``, which embeddings do not need; the names of its labels
    are in the card. Adapters (LoRA) are merged into the weights.

    Parameters
    ----------
    source
        Folder of published or fine-tuned weights with their ``config.json``, or the ``.tar`` or ``.tar.gz`` that holds one.
    out
        Folder to write; it must not exist, or be empty.
    family, dictionaries
        As in :func:`scfm.model.load`.
    name
        Name of the model in results and their provenance. By default that of the published model, or of the folder.

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
    out = Path(out).expanduser()
    with ExitStack() as stack:
        if out.absolute().parent == models_folder():
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(lock_path(out)))
        return convert_known(Path(source), out, family, dictionaries, None, name)


def convert_known(
    source: Path,
    out: Path,
    family: str | None,
    dictionaries: Dictionaries,
    known: ModelCard | None,
    name: str | None = None,
) -> Path:
    """As :func:`convert`, for the weights of a known model if ``known`` is given."""
    out = out.expanduser()
    empty = out.is_dir() and not any(out.iterdir())
    check_new(out, overwrite=empty, parents=True, replaces=lambda _: False)
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
            folder = unpack(folder, stack.enter_context(room_beside(out)))
        _write(PublishedFolder(folder, family), dictionaries, known, name, out)
    return out


def _write(
    published: PublishedFolder, dictionaries: Dictionaries, known: ModelCard | None, name: str | None, out: Path
) -> None:
    model = published.open(dictionaries, known)
    checkpoint = published.checkpoint
    with atomic(out) as work:
        work.mkdir()
        if published.weights.suffix == ".safetensors" and checkpoint.is_whole:
            for tensor_name, tensor in checkpoint.network.items():
                check_finite(tensor_name, tensor)
            put = shutil.copyfile if known is None else link_or_copy
            put(published.weights, work / WEIGHTS_FILE)
        else:
            save_tensors(checkpoint.network, work / WEIGHTS_FILE)
        if checkpoint.head:
            save_tensors(checkpoint.head, work / HEAD_FILE)
        finish_folder(work, model.card.with_(id=model.card.id if name is None else name), model.vocabulary)
