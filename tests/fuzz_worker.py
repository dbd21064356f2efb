"""A process that reads foreign files for the tests, so that a crash, a hang or a flood of memory ends it and not them."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 60.0
CPU_SECONDS = 20
ADDRESS_SPACE = 4 * 2**30
RESIDENT = 2**29
LITTLE = 300 * 2**20
FILE_BYTES = 2**27
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pty.",
)
CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
HARMLESS_CTYPES = ("ctypes.get_errno", "ctypes.set_errno", "ctypes.cdata", "ctypes.addressof", "ctypes.PyObj")


@dataclass(frozen=True)
class Outcome:
    """What came of a file."""

    error: str = ""
    """Name of the class of the exception; empty if the file was read, ``"crash"`` or ``"hang"`` if the process ended."""
    message: str = ""
    forbidden: tuple[str, ...] = ()
    """What the process did that reading a file never needs."""
    resident: int = 0
    """Bytes of memory that came in at the most."""


def check_refused(outcome: Outcome, match: str) -> None:
    """Fail unless a file was refused by a short and clear error, and at little cost."""
    assert outcome.error == "ValueError", outcome
    assert match in outcome.message
    assert len(outcome.message) < 5000
    assert not outcome.forbidden
    assert outcome.resident < LITTLE


class Worker:
    """The process, started again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()

    def __call__(self, reader: str, folder: Path) -> Outcome:
        """Let a reader read what lies in a folder."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([reader, str(folder)]).encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
        line = process.stdout.readline() if ready else b""
        if line:
            return Outcome(**{**(found := json.loads(line)), "forbidden": tuple(found["forbidden"])})
        process.kill()
        code = process.wait()
        self._process = None
        self._errors.seek(0)
        said = self._errors.read()[-2000:].decode(errors="replace")
        return Outcome("crash" if ready else "hang", f"exit code {code}: {said}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
        self._errors.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors.truncate(0)
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-X", "faulthandler", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            assert self._process.stdout is not None
            started = self._process.stdout.readline()
            assert started == b"ready\n", "the worker did not start"
        return self._process


@cache
def shared_worker() -> Worker:
    """One process for all tests of this one, for it takes seconds to start."""
    worker = Worker()
    atexit.register(worker.close)
    return worker


def _tensors(path: Path) -> None:
    from scfm.weights.tensors import open_tensors, shapes

    tensors = open_tensors(path)
    shapes(tensors)
    for name in tensors:
        tensors[name].clone()


def _dictionary(path: Path) -> None:
    from scfm.weights.pickles import read_dictionary

    for values in (object, int, float, str):
        try:
            read_dictionary(path, values)
        except ValueError:
            if values is str:
                raise


def _dictionaries(folder: Path) -> None:
    from scfm.weights.dictionaries import find_dictionaries, read_vocabulary

    read_vocabulary(find_dictionaries(None, folder, None))


def _genes(path: Path) -> None:
    from scfm.weights.gene_vectors import read_gene_names, read_gene_vectors, vector_size

    names = read_gene_names(path)
    vector_size(path)
    found, vectors = read_gene_vectors(path)
    assert found == names
    assert len(vectors) == len(names)


def _vocabulary(folder: Path) -> None:
    from scfm.genes import Vocabulary

    Vocabulary.read(folder, special_tokens={"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3})


def _card(folder: Path) -> None:
    from scfm.weights import ModelCard

    ModelCard.read(folder)


def _model(folder: Path) -> None:
    import scfm

    model = scfm.model.load(folder)
    model.network(min(model.n_layers, 1))


def _convert(folder: Path) -> None:
    import scfm

    scfm.model.convert(next(folder.glob("*.tar*"), folder), folder / "out")


def _unpack(folder: Path) -> None:
    from scfm.weights.archive import unpack

    unpack(folder / "a.tar", folder / "out", max_bytes=2**24)


def _store(folder: Path) -> None:
    from scfm.run.store import ShardStore

    store = ShardStore.open(folder)
    store.done()
    store.missing()
    store.files()


def _tokenized(path: Path) -> None:
    from scfm.read import open_tokenized

    with open_tokenized(path, vocab_size=1000) as source:
        assert sum(block.n_cells for block in source.blocks()) == source.n_obs == len(source.obs)


def _ontology(path: Path) -> None:
    from scfm.ontology import read_ontology

    ontology = read_ontology(path)
    ontology.similarity(ontology.ids[:3])
    ontology.ancestor_mask(ontology.ids)


READERS: dict[str, Callable[[Path], None]] = {
    "safetensors": lambda folder: _tensors(folder / "model.safetensors"),
    "pytorch": lambda folder: _tensors(folder / "pytorch_model.bin"),
    "dictionary": lambda folder: _dictionary(folder / "token_dictionary.pkl"),
    "dictionaries": _dictionaries,
    "genes": lambda folder: _genes(folder / "a_gene.h5"),
    "vocabulary": _vocabulary,
    "card": _card,
    "model": _model,
    "convert": _convert,
    "unpack": _unpack,
    "store": _store,
    "parquet": lambda folder: _tokenized(folder / "cells.parquet"),
    "arrow": lambda folder: _tokenized(folder / "cells.arrow"),
    "dataset": _tokenized,
    "owl": lambda folder: _ontology(folder / "cl.owl"),
    "obo": lambda folder: _ontology(folder / "cl.obo"),
}


class _Guard:
    """Notes and stops what goes beyond reading a file, as far as Python sees it."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is not None and self._is_forbidden(event, args):
            self.found.append(f"{event}{args!r}"[:300])
            msg = f"{event} is forbidden here"
            raise PermissionError(msg)

    def _is_forbidden(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = args
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not self._inside(path)
        if event.startswith(CHANGING):
            start = Path(
                f"/proc/self/fd/{args[-1]}"
            )  # from which a path is relative, if the last one is the number of a folder
            start = start if start.exists() else Path()
            return not all(self._inside(start / os.fsdecode(path)) for path in args if isinstance(path, str | bytes))
        return event.startswith(FORBIDDEN) and not event.startswith(HARMLESS_CTYPES)

    def _inside(self, path: object) -> bool:
        if isinstance(path, int) or path == os.devnull:
            return True
        real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return real == self.folder or real.startswith(f"{self.folder}{os.sep}")


def _status(name: str) -> int:
    """Bytes of an entry of the kernel's account of this process; 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name)), 0)


def _warm_up() -> None:
    """Import and load whatever readers need, so that what happens later is of the files alone."""
    import obonet  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import scfm.ontology
    import scfm.run.store
    from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

    ontology = scfm.ontology.bundled()
    ontology.similarity(ontology.ids[:3])
    with tempfile.TemporaryDirectory() as top:
        for write in (write_geneformer, write_sccello, write_transcriptformer):
            folder = Path(top, write.__name__)
            write(folder)
            _model(folder)
            _convert(folder)
            _model(folder / "out")


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    if size := _status("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))


def _read(reader: str, folder: Path, guard: _Guard) -> dict[str, Any]:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    except OSError:
        pass
    before = _status("VmRSS")
    guard.found.clear()
    guard.folder = os.path.realpath(folder)
    name, message = "", ""
    try:
        READERS[reader](folder)
    except BaseException as error:  # noqa: BLE001
        name, message = type(error).__name__, str(error)
    guard.folder = None
    resident = max(0, _status("VmHWM") - before)
    return {"error": name, "message": message[:10_000], "forbidden": guard.found, "resident": resident}


def main() -> None:
    """Answer each line with one line."""
    import h5py  # noqa: F401
    import torch  # noqa: F401

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _warm_up()
    guard = _Guard()
    sys.addaudithook(guard)
    _limit()
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin:
        reader, folder = json.loads(line)
        answers.write(json.dumps(_read(reader, Path(folder), guard)).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
