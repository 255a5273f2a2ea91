"""Read a pickled dictionary of a numpy array and lists without unpickling: no code is imported or called.

Opcodes only move values. A call becomes a list of its name, its arguments and its later state; a tuple becomes a list,
and a dictionary the flat list of its keys and values. Time and memory are linear in the bytes read.
"""

import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPCODES = 200_000  # a batch of 10,000 images has 30,000; each may create an object of 100 bytes

_ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_BYTES = "_codecs encode"  # how Python 3 writes bytes in protocols 0 to 2
_NAMES = (*_ARRAYS, _BYTES, "numpy ndarray", "numpy dtype")
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1"}
_VALUES |= {"SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read_pickled(data: bytes) -> dict[bytes, Any]:
    """The pickled dictionary's values by key, unconverted: `as_pixels` and `as_integers` convert a value.

    Raises ValueError for a name or opcode that is not allowed, and any exception for a malformed pickle.
    """
    flat = _read_opcodes(data)
    return {_as_bytes(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def as_pixels(value: Any) -> NDArray[np.uint8]:
    """Convert a value to the uint8 array it describes; raises as `read_pickled` does."""
    name, _, (_, shape, (_, (dtype, *_), *_), columns_first, content) = value
    if name not in _ARRAYS or dtype != "u1":
        raise ValueError("it has no uint8 array")
    return np.frombuffer(_as_bytes(content), np.uint8).reshape(shape, order="F" if columns_first else "C")


def as_integers(value: Any) -> NDArray[np.int64]:
    """Convert a value to a list of integers, (N,) int64; raises as `read_pickled` does."""
    # numpy would expand nested references to one list exponentially.
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise ValueError("it has no list of integers")
    return np.array(value, np.int64)


def _as_bytes(value: Any) -> bytes:
    match value:
        case str():  # written by Python 2
            return value.encode("latin1")
        case bytes():
            return value
        case [str(name), [str(text), _]] if name == _BYTES:
            return text.encode("latin1")
    raise ValueError(f"{type(value).__name__} instead of bytes")


def _read_opcodes(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop(count: int) -> list[Any]:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > OPCODES:
            raise ValueError(f"more than {OPCODES:,} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(pop(len(stack) - marks.pop()))
            case "SETITEMS" | "APPENDS":
                items = pop(len(stack) - marks.pop())
                stack[-1].extend(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(pop(int(opcode.name[-1])))
            case "REDUCE":
                stack.append(pop(2))
            case "APPEND" | "BUILD":
                (item,) = pop(1)
                stack[-1].append(item)
            case "SETITEM":
                pair = pop(2)
                stack[-1].extend(pair)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                name = argument or " ".join(pop(2))
                if name not in _NAMES:
                    raise ValueError(f"it refers to {name.replace(' ', '.'):.100}, which is not allowed")
                stack.append(name)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[opcode.name])
            case name if name in _VALUES:
                stack.append(argument)
            case name:
                raise ValueError(f"it has the opcode {name}, which is not allowed")
    return stack.pop()
