"""What a pretraining run is: everything that decides its result, as one tree of dataclasses."""

from __future__ import annotations

import difflib
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from scfm._checks import check_least, check_share
from scfm.train.views import Views

__all__ = ["PARTS", "Pretraining", "differences", "plain", "read_config"]


@dataclass(frozen=True, kw_only=True)
class Genes:
    """Which genes the model knows.

    Parameters
    ----------
    source
        Folder or name of a model whose vocabulary is taken as it is. By default the genes are those of the corpus.
    medians
        With ``source``: medians of the corpus; a gene that it does not express keeps its own.
    append
        With ``base``: add genes of the corpus that the base does not know, behind its own.
    names
        Folder or name of a model whose symbols and other names of genes are understood in the corpus.
    species
        Species of the genes of the corpus.
    min_cells, min_share
        A gene of the corpus is taken if so many cells, and this share of the cells of one file, express it.
    """

    source: str | None = None
    medians: bool = False
    append: bool = False
    names: str | None = None
    species: str = "human"
    min_cells: int = 10
    min_share: float = 0.002

    def __post_init__(self) -> None:
        check_least("genes.min_cells", self.min_cells)
        check_share("genes.min_share", self.min_share)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which cells a step sees.

    Parameters
    ----------
    power
        Files are drawn by their number of cells to this power: 1 by cells, 0 all alike.
    batch_cells
        Cells of a step, over all processes.
    cells_per_file
        Cells of a step that are drawn from one file together: more of them for losses that compare cells of one file.
    batch_tokens
        Tokens that go through the network at a time; a step with more is computed in parts, whose gradients are added.
        Losses that compare cells compare those of one part.
    memory_gb
        Counts that are held in memory. Files that fit are read once; of the others, stretches of cells are read in
        random order and shuffled.
    """

    power: float = 0.5
    batch_cells: int = 64
    cells_per_file: int = 1
    batch_tokens: int = 65_536
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        check_share("sampling.power", self.power)
        check_least("sampling.batch_cells", self.batch_cells)
        check_least("sampling.cells_per_file", self.cells_per_file)
        check_least("sampling.batch_tokens", self.batch_tokens)
        if not self.memory_gb > 0:
            msg = f"sampling.memory_gb must be above 0, got {self.memory_gb}."
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How weights follow the gradient (AdamW).

    Parameters
    ----------
    learning_rate
        Largest learning rate.
    embedding_rate
        That of the vectors of genes; as the others by default.
    head_rate
        That of the heads of objectives; as the others by default.
    weight_decay
        Of matrices; biases, norms and the vectors of genes have none.
    betas, eps
        Of AdamW.
    clip
        Largest norm of a gradient, 0 for none.
    warmup
        Steps over which the learning rate rises.
    schedule, final
        How it falls from then on, and to which share of the largest.
    """

    learning_rate: float = 1e-3
    embedding_rate: float | None = None
    head_rate: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clip: float = 1.0
    warmup: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: float = 0.05

    def __post_init__(self) -> None:
        rates = {
            "learning_rate": self.learning_rate,
            "embedding_rate": self.embedding_rate,
            "head_rate": self.head_rate,
            "eps": self.eps,
        }
        for name, value in rates.items():
            if value is not None and not 0 < value < 1:
                msg = f"optimiser.{name} must be between 0 and 1, got {value}."
                raise ValueError(msg)
        for name in ("weight_decay", "clip", "warmup"):
            if getattr(self, name) < 0:
                msg = f"optimiser.{name} must not be negative, got {getattr(self, name)}."
                raise ValueError(msg)
        check_share("optimiser.final", self.final)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What the model is judged by while it is trained; these cells are not trained on.

    Parameters
    ----------
    cells
        Cells that are held out, over all files by the weights of ``sampling``, but no more than a tenth of a file; and
        as many of ``files``. 0: none.
    files
        Names of files, without their suffix, that are held out as a whole.
    every
        Steps between two looks.
    """

    cells: int = 512
    files: list[str] = field(default_factory=list)
    every: int = 500

    def __post_init__(self) -> None:
        check_least("validation.cells", self.cells, 0)
        check_least("validation.every", self.every)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how the network is computed.

    Parameters
    ----------
    accelerator, devices, strategy
        As of :class:`lightning.Trainer`; several ``devices`` are as many processes, which share a step.
    precision
        ``"32-true"``, or ``"bf16-mixed"`` for products of matrices in bfloat16.
    recompute
        Keep no states of layers for the backward pass, but compute them again: less memory, a third more time.
    threads
        Threads of torch; by default as many as it takes by itself (``OMP_NUM_THREADS``, else all cores).
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    recompute: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        check_least("machine.devices", self.devices)
        if self.threads is not None:
            check_least("machine.threads", self.threads)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pretraining run.

    Parameters
    ----------
    files
        Files with counts, patterns such as ``"atlas/*.h5ad"``, or stores.
    out
        Folder of the trained model. Checkpoints and logs are in ``<out>.training`` beside it.
    steps
        Steps of the optimiser.
    family
        Family of the model; that of ``base`` by default.
    base
        Folder or name of a model whose training goes on.
    architecture
        Sizes of the network that differ from those that the family starts with, as ``{"n_layers": 4}``; with ``base``
        only ``dropout``.
    pooling, max_tokens
        How a cell is pooled, and its longest sequence; defaults of the model that is trained.
    start
        Weights that training starts from without ``base``: ``"random"``, or those of a ``"projection"`` of the corpus
        (``scfm.train.rank_start``).
    gene_vectors
        File of vectors from which those of genes start: ``.npz`` with ``genes`` and ``vectors``, or HDF5 as
        TranscriptFormer's.
    layer, gene_key, labels_key
        Where counts, ids of genes and labels of cells are in the files.
    genes, views, sampling, optimiser, validation, machine
        Parts of the run.
    masking
        Arguments of :class:`scfm.train.masking.Masking`.
    objectives
        Losses by name with their arguments and their ``weight``, as ``{"masked_genes": {"weight": 1.0}}``.
    checkpoint_every
        Steps between two checkpoints.
    seed
        Decides, with the step alone, which cells are drawn, how they are changed, and the first weights.
    name
        Name of the model; that of ``out`` by default.
    weights_dtype
        Of the weights that are written.
    description, license
        For the card.
    terms
        Terms of use of the data, for the card: by name of the file without suffix.
    """

    files: list[str] = field(default_factory=list)
    out: str = ""
    steps: int = 10_000
    family: str | None = None
    base: str | None = None
    architecture: dict[str, int | float | str] = field(default_factory=dict)
    pooling: str | None = None
    max_tokens: int | None = None
    start: Literal["random", "projection"] = "random"
    gene_vectors: str | None = None
    layer: str | None = None
    gene_key: str | None = None
    labels_key: str | None = None
    genes: Genes = field(default_factory=Genes)
    views: Views | None = None
    masking: dict[str, float] = field(default_factory=dict)
    objectives: dict[str, dict[str, Any]] = field(default_factory=lambda: {"masked_genes": {}})
    sampling: Sampling = field(default_factory=Sampling)
    optimiser: Optimiser = field(default_factory=Optimiser)
    validation: Validation = field(default_factory=Validation)
    machine: Machine = field(default_factory=Machine)
    checkpoint_every: int = 500
    seed: int = 0
    name: str | None = None
    weights_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    description: str = ""
    license: str = ""
    terms: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_least("steps", self.steps)
        check_least("checkpoint_every", self.checkpoint_every)
        check_least("seed", self.seed, 0)
        if self.start == "projection" and self.base is not None:
            msg = "start='projection' makes new weights, but base= has some; leave one of the two out."
            raise ValueError(msg)
        if not self.objectives:
            msg = "objectives is empty: name at least one loss, as {'masked_genes': {}}."
            raise ValueError(msg)
        if self.sampling.batch_cells % (self.unit * self.machine.devices) or self.unit % self.cells_per_panel:
            msg = (
                f"sampling.batch_cells={self.sampling.batch_cells} must be a multiple of machine.devices × "
                f"sampling.cells_per_file, and of machine.devices × views.cells_per_panel={self.cells_per_panel}; of the last "
                "two, one must be a multiple of the other."
            )
            raise ValueError(msg)

    @property
    def cells_per_panel(self) -> int:
        """Cells that have the random numbers of their views in common."""
        return 1 if self.views is None else self.views.cells_per_panel

    @property
    def unit(self) -> int:
        """Cells that are in one process together."""
        return max(self.cells_per_panel, self.sampling.cells_per_file)


def read_config(config: Pretraining | str | Path | Mapping[str, Any] | None, **given: Any) -> Pretraining:
    """Read a run from a YAML file, a mapping or an object; arguments that are given and not ``None`` take precedence.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no YAML, or holds a key or a value that there is not; the message names it.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(config, Pretraining):
        return replace(config, **given)
    values, where = config or {}, "config"
    if isinstance(config, str | Path):
        values, where = _read_yaml(Path(config).expanduser()), str(config)
    if not isinstance(values, Mapping):
        msg = f"{where} holds a {type(values).__name__}, expected names and values, as 'steps: 1000'."
        raise ValueError(msg)
    values = {**values, **given}
    if isinstance(values.get("files"), str):
        values["files"] = [values["files"]]
    return _parsed(values, where)


def _read_yaml(path: Path) -> Any:
    import yaml

    if not path.is_file():
        msg = f"There is no file {path}; config= takes a YAML file; `scfm pretrain --example-config` prints one with all keys."
        raise FileNotFoundError(msg)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path} is no YAML: {error}"
        raise ValueError(msg) from error


def _parsed(values: Mapping[str, Any], where: str) -> Pretraining:
    from jsonargparse import ArgumentParser

    _check_keys(values, Pretraining, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Pretraining, "run")
    try:
        parsed: Pretraining = parser.instantiate(parser.parse_object({"run": dict(values)})).run
    except (ArgumentError, TypeError, ValueError) as error:
        text = " ".join(str(error).split()).replace("run.", "").replace("Parser key ", "")
        msg = f"{where}: {text}"
        raise ValueError(msg) from error
    return parsed


def _check_keys(values: Mapping[str, Any], cls: type, where: str, prefix: str = "") -> None:
    """Refuse names that there are not, with the closest one that there is."""
    known = {one.name: one for one in fields(cls)}
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(known)}."
            msg = f"{where}: {prefix}{name} is not known; {hint}"
            raise ValueError(msg)
        part = PARTS.get(name)
        if part is not None and not prefix and value is not None:
            if not isinstance(value, Mapping):
                msg = f"{where}: {name} holds {value!r}, expected names and values."
                raise ValueError(msg)
            _check_keys(value, part, where, f"{name}.")


PARTS: dict[str, type] = {
    "genes": Genes,
    "views": Views,
    "sampling": Sampling,
    "optimiser": Optimiser,
    "validation": Validation,
    "machine": Machine,
}
"""Parts of a run by key."""


def plain(config: Pretraining) -> dict[str, Any]:
    """A run as types that JSON and YAML know."""
    values = asdict(config)
    values["optimiser"]["betas"] = list(values["optimiser"]["betas"])
    return values


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two runs, as :func:`plain` gives them, lead to other results."""
    free = ("out", "name", "description", "license", "terms", "checkpoint_every", "weights_dtype")
    names = [name for name in one.keys() | other.keys() if name not in free and one.get(name) != other.get(name)]
    return sorted(names)
