"""Read published gene dictionaries without running what a pickle may ask for.

Only dictionaries, strings, numbers and numpy scalars can be built; everything else is refused before it is looked up.
"""

from __future__ import annotations

import codecs
import pickle
import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_dictionary"]

MAX_PICKLE_BYTES = 64 * 2**20
_SCALAR_KINDS = frozenset("biufSU")


def read_dictionary(path: Path, values: type = object) -> dict[str, Any]:
    """Read a pickled dictionary of strings to strings or numbers.

    Parameters
    ----------
    path
        A pickle file of at most 64 MiB.
    values
        ``str``, ``int`` or ``float``: what every value must be or convert to; numpy scalars become Python ones.

    Raises
    ------
    ValueError
        If the file is too large, no pickle, holds anything but such a dictionary, or asks for code to be run.
    """
    size = path.stat().st_size
    if size > MAX_PICKLE_BYTES:
        msg = f"{path} has {size:,} bytes; a gene dictionary has at most {MAX_PICKLE_BYTES:,}."
        raise ValueError(msg)
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head.startswith(b"version https://git-lfs"):
                msg = f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` where it came from."
                raise ValueError(msg)
            file.seek(0)
            found = _RestrictedUnpickler(file).load()
    except ValueError:
        raise
    except Exception as error:
        msg = f"{path} is no readable pickle ({type(error).__name__}: {error})."
        raise ValueError(msg) from error
    if type(found) is not dict:
        msg = f"{path} holds a {type(found).__name__}, expected a dictionary."
        raise ValueError(msg)
    return _checked(found, values, path)


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
    """An unpickler that finds three harmless functions and nothing else.

    The Python version: the one in C makes room for as many memo entries, or bytes, as a file of a few bytes asks for.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def _refuse(self) -> None:
        msg = "it holds a bytearray, which a dictionary of numbers does not need"
        raise pickle.UnpicklingError(msg)

    dispatch[pickle.BYTEARRAY8[0]] = _refuse  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        if name == "scalar" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _SCALAR
        if (module, name) == ("numpy", "dtype"):
            return _DTYPE
        if (module, name) == ("_codecs", "encode"):
            return _ENCODE
        msg = f"it asks for {module}.{name}, which a dictionary of numbers does not need; nothing was run"
        raise pickle.UnpicklingError(msg)

    def persistent_load(self, pid: Any) -> Any:
        msg = "it refers to objects outside the file"
        raise pickle.UnpicklingError(msg)


class _DType:
    """Stand-in for a numpy dtype of a scalar while it is unpickled."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1] if len(state) > 1 else "="
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


# A pickle may set attributes of whatever it finds. These are objects without room for any, where functions have some.


class _MakeDType:
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _DType:
        if not isinstance(code, str) or len(code) > 8 or np.dtype(code).kind not in _SCALAR_KINDS:
            msg = f"it holds a numpy type {reprlib.repr(code)} that is no number or string"
            raise pickle.UnpicklingError(msg)
        return _DType(code)


class _MakeScalar:
    __slots__ = ()

    def __call__(self, dtype: Any, data: Any = None) -> Any:
        if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
            msg = "it holds a numpy scalar whose bytes do not fit its type"
            raise pickle.UnpicklingError(msg)
        return np.frombuffer(data, dtype.dtype)[0]


class _Encode:
    """Protocol 2 pickles spell bytes as a call of ``codecs.encode(text, "latin1")``."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            msg = "it encodes something that is no latin1 text"
            raise pickle.UnpicklingError(msg)
        return codecs.encode(text, "latin1")


_DTYPE, _SCALAR, _ENCODE = _MakeDType(), _MakeScalar(), _Encode()
