"""Random damage to bytes and to JSON-like values. The same `random` gives the same damage."""

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**300, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "../../etc/passwd", "\0", [], {}, [[]], [None] * 50, {"count": -1}, [1e308] * 3, "9" * 5000),
)


def damaged(data: bytes, random: Random) -> bytes:
    """`data` with one to three bytes or stretches changed, removed, doubled or inserted."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed) + 1)
        stretch = changed[at : at + random.choice((1, 2, 4, 8, 100))]
        match random.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + len(stretch)]
            case 3:
                changed[at:at] = random.randbytes(random.choice((1, 2, 4, 100)))
            case 4:
                changed[at:at] = stretch
            case 5:
                changed[at : at + len(stretch)] = random.choice((b"\0", b"\xff", b"\x7f", b"[")) * len(stretch)
    return bytes(changed)


def retyped(value: Any, random: Random) -> Any:
    """A copy of a tree of dictionaries and lists in which one node is another value, doubled, renamed or removed."""
    tree = copy.deepcopy(value)
    parent, key = random.choice(list(_nodes(tree)))
    match random.randrange(4):
        case 0 | 1:
            parent[key] = copy.deepcopy(random.choice(WRONG_VALUES))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, dict):
            parent[random.choice((f"{key}x", "../x", "", "\ud800"))] = parent.pop(key)
        case 3:
            parent.insert(key, copy.deepcopy(parent[key]))
    return tree


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every node, as its parent and its key."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _nodes(tree[key])
