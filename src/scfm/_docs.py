"""Texts of the parameters that verbs have in common, each written once."""

from __future__ import annotations

import re
from textwrap import indent
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["with_parameters"]

Function = TypeVar("Function", bound="Callable[..., Any]")

MODALITY = """modality
    Modality of a MuData object that holds the counts; the result goes there. Of a 10x file with several genomes, one
    of them."""

MATRIX = """layer
    Layer that holds the counts.
use_raw
    Take the counts from ``raw``. By default X if it holds counts that are not all 0, else raw if that does, else
    the one layer that does.
gene_key
    Column of ``var`` with gene ids or symbols, ``"index"`` for ``var_names``. By default the place where most
    genes match the model."""

PARAMETERS = {
    "data": """data
    Counts of cells × genes: an AnnData or MuData, in memory or backed, or the path of an ``.h5ad`` file, an ``.h5mu``
    file, a zarr store, a ``.loom`` file, or a ``.h5`` file or ``matrix.mtx`` folder of 10x, which is read block by block. Neither counts nor annotation are changed.""",
    "out": """out
    For a path: file to write, a copy of ``data`` with the results, in the same format (``.h5ad`` for files of 10x and loom). It
    appears when it is complete.
overwrite
    Replace ``out`` if it exists; it may be ``data`` itself.""",
    "checkpoint": """checkpoint
    For a path: folder that takes what has been computed, every half minute or less often, and is removed when the results are
    written. After an interruption, a crash of the process or of the machine, the same call goes on from there. Where it exists
    already, it must be of the same run: the same unchanged file, model and arguments (but for ``n_top``, names and device).""",
    "model": """model
    Id or alias of :func:`scfm.model.list_models`, the path of a folder, or a model that
    :func:`scfm.model.load` returned (which saves loading it again).""",
    "matrix": f"{MODALITY}\n{MATRIX}",
    "pooling": """pooling
    ``"cls"``: the first special token. ``"mean"``: mean over genes. ``"cell"``: as TranscriptFormer and ESM2-CE
    define it. ``"gene"``: mean of each gene over cells. By default as the model was meant.""",
    "hidden_layer": """hidden_layer
    Layer to take: 0 is the last, −1 the one before it, and so on. Layers behind it are not computed.""",
    "max_tokens": """max_tokens
    Longest input of a cell, special tokens included; at most (and by default) that of the model.""",
    "device": """device
    ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; several such as ``["cuda:0", "cuda:1"]`` share the batches. By
    default the fastest there is.""",
    "dtype": """dtype
    ``"float32"``, ``"bfloat16"`` or ``"float16"`` for weights and activations. By default bfloat16 on CUDA devices
    that have it, float32 elsewhere.""",
    "quantize": """quantize
    ``"int8"``: keep the weights of the linear layers in 8 bits; ``"int8_dynamic"``: and compute with inputs of 8 bits (extra
    ``quantize``). ``"nf4"``: weights in 4 bits, on CUDA devices (package bitsandbytes). They take less memory, not always
    less time, and results are close to those of ``dtype``, not equal.""",
    "compat": """compat
    ``"upstream"``: match and encode genes exactly as the model's own code does, its errors included.""",
    "shared_with": """shared_with
    Data to compare with: an AnnData or MuData, the path of a file, or a list of these. Only genes that all of them have
    are used. The genes of an object are those of its embedding by this model, or else all that match. Embed the other data
    in the same way.""",
    "groupby_genes": """groupby
    For ``pooling="gene"``: column of ``obs``; genes are averaged over the cells of each of its values.""",
    "genes": """genes
    Genes by any of their names: as in ``var_names`` or another column of ``var`` with ids or symbols, or as the
    model knows them (Ensembl ids, aliases, symbols). All by default.""",
    "perturbations": """genes
    ``"all"``: each gene that a cell expresses, by itself. A list of genes: each by itself. A list of tuples, or a
    dict of a name and genes: those of each group together; a tuple is called ``"A+B"``. Genes go by any of their
    names, as for :func:`scfm.tl.embed`.
kind
    ``"delete"``; ``"overexpress"``: to the front of the ranks; ``"inhibit"`` or ``"activate"``: a quarter of the ranks
    down or up. Of a model that reads counts, genes keep their places: ``"overexpress"`` gives them the largest count that
    it reads (``clip_counts``; genes that a cell does not express come first), ``"inhibit"`` half and ``"activate"`` twice
    their count, up to that. All but ``"overexpress"`` take the cells that express all genes of a group.
anchor
    Gene that is changed together with each of ``genes``.
states_key
    Column of ``obs`` with the states of the cells.
start
    State whose cells are changed.
goal
    State that they may move to.
alternatives
    Further states.
state_average
    ``"mean"`` or ``"median"`` of the embeddings of all cells of a state.""",
    "n_perturbed": """n_cells
    Most cells that are changed, drawn at random; all (of the start state) by default.
seed
    Seed of the draw.""",
    "store_source": """source
    Path of an ``.h5ad`` or ``.h5mu`` file, a zarr store or a collection of ``annbatch``, or the address of a zarr
    store (``https://…``, ``s3://…``); it is read block by block and not changed. Several files, each with its own
    genes, are given as a list or by a pattern such as ``"atlas/*.h5ad"``.""",
    "store_shard": """shard
    Part of the work to do: ``"3/16"`` is the third of sixteen. ``"auto"`` takes it from the environment of torchrun
    (``RANK``, ``WORLD_SIZE``) or SLURM (``SLURM_PROCID``, ``SLURM_NTASKS``), and the CUDA device from ``LOCAL_RANK``
    or ``SLURM_LOCALID``. By default everything.""",
    "store_fill": """resume
    Whether to go on with a store that exists; ``False`` makes that an error.
into_source
    When nothing is missing any more, add the results to ``source``, too (to each file those of its cells). It is
    completed in a copy that takes its place in one step; that needs room for both, except that the copy of a zarr store
    shares its chunks with it. After a stop the same call completes this, too.
client
    A dask client, whose workers then compute the shards. Each loads the model once; all of them must reach
    ``source``, ``out`` and the model under the same paths. Needs the extra ``cluster``.""",
    "key_added": """key_added
    Name of all results instead of the default ones, of at most 200 bytes and without slashes. Only what the same function
    wrote is overwritten.""",
    "errors": """TypeError
    If an argument has another type than it takes, or the family of the model does not have an option.
KeyError
    If a column or a gene that an argument names is not there.
ValueError
    If counts are negative or NaN, no gene matches, or an argument is out of range or out of place; nothing is stored
    then.
FileNotFoundError
    If a file, or the folder to write to, does not exist.""",
    "copy": """copy
    Change and return a copy of an object instead.""",
    "fine_tuned": """data
    Cells that ``setup_anndata`` was called with.
model
    Foundation model to fine-tune: name, folder, or a loaded one.""",
    "fine_tuning": """pooling, max_tokens, compat
    As for :func:`scfm.tl.embed`; embeddings are of the last layer.
freeze
    Layers that keep their weights, counted from the input, together with the vectors of genes (0: these alone); ``True``
    for all of them.
lora
    Train low-rank adapters instead of the weights of the layers: their rank, or a :class:`LoRA`.
dropout
    Dropout probability in training, of the layers and before the linear layer; 0.02 as Geneformer and scCello.
registry
    Setup of a model that is loaded without data.
**options
    Options of the family of the model.""",
    "fine_tune_data": """data
    Counts of cells × genes: an AnnData or MuData, in memory, backed or lazy, the path of a file or store, or several.""",
    "setup_counts": """layer, use_raw, gene_key, modality
    As for :func:`scfm.tl.embed`.
donors_key
    Column of ``obs`` whose values are kept whole: all cells of a donor are trained on, or none.""",
    "setup_data": """adata
    Counts of cells × genes: an AnnData or MuData, in memory, backed or lazy, the path of a file or store, or several;
    also of tokenised cells.""",
    "predict_from": """adata
    Cells, with or without labels, in any form that :meth:`setup_anndata` takes; those of the training by default.
modality
    Modality of a MuData.""",
    "options": """options
    Options that only the family of the model has, as those of :doc:`TranscriptFormer </models/transcriptformer>`.""",
}

_PLACE = re.compile(r"^( *)%\((\w+)\)s", re.MULTILINE)


def with_parameters(function: Function) -> Function:
    """Fill the lines ``%(name)s`` of a docstring with the texts of :data:`PARAMETERS`."""
    if function.__doc__:  # none under python -OO
        function.__doc__ = _PLACE.sub(lambda place: indent(PARAMETERS[place[2]], place[1]), function.__doc__)
    return function
