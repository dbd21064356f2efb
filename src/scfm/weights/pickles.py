"""Unpickle gene dictionaries and check pickles of tensors without running code.

Only dictionaries, lists, strings, numbers and numpy scalars are built; everything else is refused before it is imported.
Files of tensors may also name tensors and storages, for which only placeholders are built.
"""

from __future__ import annotations

import codecs
import pickle
import reprlib
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from scfm._paths import check_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["check_tensor_pickle", "read_dictionary"]

MAX_PICKLE_BYTES = 2**24
MAX_INSTRUCTIONS = 2_000_000
"""Of one pickle, where one that makes a container counts five times; published files have up to 750,000."""
MAX_SCALAR_BYTES = 256
MAX_BITS = 128
MAX_INDEX = 2**31
MAX_MESSAGE = 500
_SCALAR_KINDS = frozenset("biufSU")
_STORAGES = frozenset(f"{kind}Storage" for kind in "Double Float Half BFloat16 Long Int Short Char Byte Bool".split())
_PLAIN = frozenset(
    getattr(pickle, name)[0]
    for name in (
        "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 FLOAT BINFLOAT "
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
        "BINBYTES8 EMPTY_DICT EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET "
        "LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD PERSID BINPERSID"
    ).split()
)
_CONTAINERS = frozenset(
    getattr(pickle, name)[0]
    for name in "MARK EMPTY_DICT EMPTY_LIST DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 REDUCE".split()
)
"""Opcodes whose objects the garbage collector visits again and again."""


def read_dictionary(path: Path, values: type = object) -> dict[str, Any]:
    """Read a pickled dictionary of strings to strings or numbers.

    Parameters
    ----------
    path
        Pickle file of at most 16 MiB and 2,000,000 instructions, which bounds the memory to about 0.3 GB.
    values
        ``str``, ``int`` or ``float``: type of the values; numpy scalars become Python scalars.

    Raises
    ------
    ValueError
        If the file is too large, not a pickle, holds anything else, or would run code.
    """
    check_regular(path)
    size = path.stat().st_size
    if size > MAX_PICKLE_BYTES:
        msg = f"{path} has {size:,} bytes; a gene dictionary has at most {MAX_PICKLE_BYTES:,}."
        raise ValueError(msg)
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            msg = f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` where it came from."
            raise ValueError(msg)
        file.seek(0)
        try:
            found = _DictionaryUnpickler(file).load()
        except OSError:
            raise
        except Exception as error:
            msg = f"{path} is not a readable pickle ({type(error).__name__}: {str(error)[:MAX_MESSAGE]})."
            raise ValueError(msg) from error
    if type(found) is not dict:
        msg = f"{path} holds a {type(found).__name__}, expected a dictionary."
        raise ValueError(msg)
    return _checked(found, values, path)


def check_tensor_pickle(file: BinaryIO, size: int) -> Any:
    """Read one pickle of a file of tensors with placeholders for tensors of at most ``size`` values.

    PyTorch's own ``weights_only`` reader admits more than a state dict needs: a few bytes can crash the interpreter or
    exhaust memory. Raises an UnpicklingError for anything but tensors and plain data, and any exception for damage.
    """
    return _TensorUnpickler(file, size).load()


def _checked(found: dict[Any, Any], values: type, path: Path) -> dict[str, Any]:
    accepted: dict[type, tuple[type, ...]] = {
        str: (str,),
        int: (int, np.integer),
        float: (int, float, np.integer, np.floating),
    }
    clean: dict[str, Any] = {}
    for key, value in found.items():
        if (
            not isinstance(key, str)
            or isinstance(value, bool)
            or not isinstance(value, accepted.get(values, (object,)))
        ):
            msg = f"{path} holds {reprlib.repr(key)}: {reprlib.repr(value)}; expected strings and {values.__name__} values. Is it another dictionary?"
            raise ValueError(msg)
        clean[str(key)] = value if values is object else values(value)
    return clean


class _RestrictedUnpickler(pickle._Unpickler):
    """Unpickler of plain data.

    The pure Python version, because the one in C allocates as many memo entries or bytes as a tiny file asks for.
    """

    needed_by: ClassVar[str]

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dispatch = _Counted()  # type: ignore[assignment, misc]

    def find_class(self, module: str, name: str) -> Any:
        msg = f"it asks for {module}.{name}, which {self.needed_by} does not need; nothing was run"
        raise pickle.UnpicklingError(msg)

    def persistent_load(self, pid: Any) -> Any:
        msg = "it refers to objects outside the file"
        raise pickle.UnpicklingError(msg)

    def refuse(self) -> None:
        msg = f"it holds an instruction that {self.needed_by} does not need; nothing was run"
        raise pickle.UnpicklingError(msg)


def _check_key(key: Any) -> None:
    # hashing nested tuples overflows the stack, and many integers can share a hash
    if type(key) is not str and not (isinstance(key, int) and 0 <= key < MAX_INDEX):
        msg = f"it holds {reprlib.repr(key)} as the key of a dictionary"
        raise pickle.UnpicklingError(msg)


def _keyed(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """Check keys, which are at this slice of the stack, before they are added to a dictionary."""

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            _check_key(key)
        load(unpickler)

    return checked


def _put(unpickler: Any) -> None:
    index = int(unpickler.readline()[:-1])
    _check_key(index)
    unpickler.memo[index] = unpickler.stack[-1]


def _bounded(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Refuse integers that are too large to print."""

    def checked(unpickler: Any) -> None:
        load(unpickler)
        if unpickler.stack[-1].bit_length() > MAX_BITS:
            msg = f"it holds an integer of more than {MAX_BITS} bits"
            raise pickle.UnpicklingError(msg)

    return checked


def _instructions() -> dict[int, Any]:
    """Handlers of the opcodes: the usual ones for plain data, refusal for all others."""
    usual = pickle._Unpickler.dispatch
    found = {code: usual[code] if code in _PLAIN else _RestrictedUnpickler.refuse for code in range(256)}
    changed = {
        pickle.PUT: _put,
        pickle.SETITEM: _keyed(usual[pickle.SETITEM[0]], slice(-2, -1)),
        **{code: _keyed(usual[code[0]], slice(None, None, 2)) for code in (pickle.SETITEMS, pickle.DICT)},
        **{code: _bounded(usual[code[0]]) for code in (pickle.INT, pickle.LONG, pickle.LONG1)},
    }
    return found | {code[0]: load for code, load in changed.items()}


_INSTRUCTIONS = _instructions()


class _Counted:
    """Handlers of the opcodes of one pickle, until it has too many."""

    def __init__(self) -> None:
        self._left = MAX_INSTRUCTIONS

    def __getitem__(self, code: int) -> Any:
        self._left -= 5 if code in _CONTAINERS else 1
        if self._left < 0:
            msg = f"it has more than {MAX_INSTRUCTIONS:,} instructions"
            raise pickle.UnpicklingError(msg)
        return _INSTRUCTIONS[code]


class _DictionaryUnpickler(_RestrictedUnpickler):
    """Admits three harmless functions and nothing else."""

    needed_by = "a dictionary of numbers"

    def find_class(self, module: str, name: str) -> Any:
        if name == "scalar" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _SCALAR
        if (module, name) == ("numpy", "dtype"):
            return _DTYPE
        if (module, name) == ("_codecs", "encode"):
            return _ENCODE
        return super().find_class(module, name)


class _TensorUnpickler(_RestrictedUnpickler):
    """Admits the parts of state dicts, as empty placeholders."""

    needed_by = "a file of tensors"

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file)
        self.size = size
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _ORDERED
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
            return _REBUILD
        if (module == "torch" and name in _STORAGES) or (module, name) == ("torch.storage", "UntypedStorage"):
            return _STORAGE
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not self._fits(*pid[1:]):
            msg = f"it refers to {reprlib.repr(pid)}, which is not a storage in the file"
            raise pickle.UnpicklingError(msg)
        return _STORAGE

    def _fits(self, kind: Any, key: Any, location: Any, size: Any, view: Any = None) -> bool:
        plain = kind is _STORAGE and type(key) is str and type(location) is str and type(size) is int and size >= 0
        if not plain or not (view is None or (type(view) is tuple and type(view[0]) is str)):
            return False
        self.size -= max(0, size - self.sizes.get(key, 0))
        self.sizes[key] = max(size, self.sizes.get(key, 0))
        return self.size >= 0


class _DType:
    """Placeholder for the numpy dtype of a scalar."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1] if len(state) > 1 else "="
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


# A pickle may set attributes of what it names: these objects have none, unlike functions.


class _MakeDType:
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _DType:
        if not isinstance(code, str) or len(code) > 8 or np.dtype(code).kind not in _SCALAR_KINDS:
            msg = f"it holds a numpy type {reprlib.repr(code)} that is neither a number nor a string"
            raise pickle.UnpicklingError(msg)
        return _DType(code)


class _MakeScalar:
    __slots__ = ()

    def __call__(self, dtype: Any, data: Any = None) -> Any:
        plain = isinstance(dtype, _DType) and isinstance(data, bytes) and len(data) <= MAX_SCALAR_BYTES
        if not plain or len(data) != dtype.dtype.itemsize:
            msg = f"it holds a numpy scalar whose bytes do not fit its type, or are more than {MAX_SCALAR_BYTES}"
            raise pickle.UnpicklingError(msg)
        return np.frombuffer(data, dtype.dtype)[0]


class _Encode:
    """Protocol 2 writes bytes as ``codecs.encode(text, "latin1")``."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or len(text) > MAX_SCALAR_BYTES or encoding != "latin1":
            msg = f"it encodes something other than latin1 text of at most {MAX_SCALAR_BYTES} characters"
            raise pickle.UnpicklingError(msg)
        return codecs.encode(text, "latin1")


class _Ordered(dict[str, Any]):
    """Placeholder for an OrderedDict, without its attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            msg = "it holds attributes that are not a dictionary"
            raise pickle.UnpicklingError(msg)


class _MakeOrdered:
    __slots__ = ()

    def __call__(self) -> _Ordered:
        return _Ordered()


class _Storage:
    __slots__ = ()


class _Rebuild:
    __slots__ = ()

    def __call__(self, *_: Any) -> _Storage:
        return _STORAGE


_DTYPE, _SCALAR, _ENCODE = _MakeDType(), _MakeScalar(), _Encode()
_ORDERED, _STORAGE, _REBUILD = _MakeOrdered(), _Storage(), _Rebuild()
