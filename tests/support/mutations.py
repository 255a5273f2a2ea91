"""Random mutations of files and values, to test that readers reject damaged input with a clear error.

Random generators are seeded by case, so a failing case can be repeated.
"""

import copy
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from psys.errors import PsysError

UNUSUAL_VALUES: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**300, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "../../etc/passwd", "\0", [], {}, [[]], [None] * 50, {"count": -1}, [1e308] * 3, "9" * 5000),
]


class Malicious:
    """An object whose unpickling would print a line."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def damaged(data: bytes, random: Random) -> bytes:
    """`data` with one to three random changes: bytes or ranges replaced, deleted, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed) + 1)
        span = changed[at : at + random.choice((1, 2, 4, 8, 100))]
        match random.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + len(span)]
            case 3:
                changed[at:at] = random.randbytes(random.choice((1, 2, 4, 100)))
            case 4:
                changed[at:at] = span
            case 5:
                changed[at : at + len(span)] = random.choice((b"\0", b"\xff", b"\x7f", b"[")) * len(span)
    return bytes(changed)


def with_changed_node(value: Any, random: Random) -> Any:
    """A copy of a tree of dictionaries and lists with one node replaced, deleted, renamed or repeated."""
    tree = copy.deepcopy(value)
    nodes = list(_nodes(tree))
    parent, key = random.choice(nodes)
    match random.randrange(4):
        case 0 | 1:
            parent[key] = copy.deepcopy(random.choice(UNUSUAL_VALUES))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, dict):
            parent[random.choice((f"{key}x", "../x", "", "\ud800"))] = parent.pop(key)
        case 3:
            parent.insert(key, copy.deepcopy(parent[key]))
    return tree


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _nodes(tree[key])


def count_rejected(
    cases: int, seed: int, attempt: Callable[[Random], object], named: Path, errors: type[Exception] = PsysError
) -> int:
    """The number of cases in which `attempt`, which mutates and reads a file, raises one of `errors`.

    Any other exception fails with the case's number, and so does a PsysError that is long or does not contain `named`.
    """
    messages = []
    for case in range(cases):
        try:
            attempt(Random(f"{seed} {case}"))
        except errors as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"case {case} of seed {seed} raised {error!r}") from error
    # A ValueError is about a single image, which the caller names.
    assert all(len(message) < 3000 and (errors is ValueError or str(named) in message) for message in messages)
    return len(messages)


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
