"""Ways to spoil a file: bytes, JSON, the header of safetensors."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, -0.0, 5e-324, float("nan"),
    float("inf"), "", "a", "..", "../../etc/passwd", "/etc/passwd", "a\x00b", "\ud800", "é" * 300, "x" * 70_000,
    "(a+)+b", "(.*)*!", ".*" * 200, "(", "[", "\\", "(?P<a>", "a{99999}{99999}", "all-linear", "CON", [], {}, [[]],
    {"": None}, {"a": {"b": [1, {}]}}, ["x"] * 3000, list(range(500)), "F64", "I8", "int64", "float32", "batch", "?",
]  # fmt: skip
PIECES = [
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[" * 3000, b'{"a":' * 2000, b'"', b"\n", b"\r", b",",
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null", b"\xf0\x9f", b"\\ud800", b"ELSEALED", b"ELRECORD",
    b"\x00" * 64,
]  # fmt: skip


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, moved or put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        place = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 4, 8, rng.randrange(64), rng.randrange(len(data) + 1)])
        kind = rng.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = rng.choice(PIECES)
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = rng.randbytes(min(length, 64))
        elif kind == 5:
            del data[place:]
        elif len(data) >= 8:
            number = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, len(data), len(data) + 1])
            place = min(place, len(data) - 8) if rng.random() < 0.5 else 0
            data[place : place + 8] = number.to_bytes(8, "little")
    return bytes(data)


def places(body: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a JSON body."""
    found: list[tuple[Any, Any]] = []
    todo = [body]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        found += [(one, key) for key in keys]
        todo += [one[key] for key in keys]
    return found


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    """Some values of a JSON body replaced, dropped, doubled or moved; bytes where it is no JSON."""
    try:
        body = json.loads(content)
    except ValueError:
        return spoil_bytes(content, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        where = places(body)
        if not where:
            body = copy.deepcopy(rng.choice(HOSTILE))
            continue
        container, key = rng.choice(where)
        kind = rng.randrange(6)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[str(rng.choice(HOSTILE))[:80_000]] = container.pop(key)
        elif kind == 2:
            other, name = rng.choice(where)
            if not (isinstance(other, dict) and name not in other) and not (
                isinstance(other, list) and name >= len(other)
            ):
                container[key] = json.loads(json.dumps(other[name]))
        elif kind == 3 and isinstance(container[key], int | float):
            container[key] = container[key] * rng.choice([-1, 2, 10**9]) + rng.choice([0, 1, -1])
        else:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
    return json.dumps(body, indent=rng.choice([None, 1])).encode("utf-8", "surrogatepass")


def nudge_json(content: bytes, rng: random.Random) -> bytes:
    """One value of a JSON body, outside of digests, replaced by a likely one of its own type."""
    body = json.loads(content)
    container, key = rng.choice(
        [p for p in places({k: v for k, v in body.items() if k != "files"}) if p[0] is not body]
    )
    value = container[key]
    likely: dict[type, list[Any]] = {
        str: ["x", "float32", "int32", "batch", "..", *(c[k] for c, k in places(body) if isinstance(c[k], str))],
        int: [0, -1, 1, value + 1 if isinstance(value, int) else 0, 10**6],
        float: [0.0, -1.0, 1e30],
        list: [[], value[:-1] if isinstance(value, list) else [], [*value, *value] if isinstance(value, list) else []],
    }
    container[key] = rng.choice(likely.get(type(value), [{}, None]))
    return json.dumps(body).encode("utf-8", "surrogatepass")


def spoil_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header changed as JSON, with its length or another; or bytes."""
    if rng.random() < 0.4 or len(content) < 8:
        return spoil_bytes(content, rng)
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = content[8:end], content[end:]
    if rng.random() < 0.3:  # other values in tensors that are well-formed
        return content[:end] + bytes(rng.choice([b, b, 0, 255, b ^ 1, 0x7F]) for b in data)
    header = spoil_json(header, rng)
    if rng.random() < 0.3:
        data = spoil_bytes(data, rng)
    length = len(header) if rng.random() < 0.9 else rng.choice([0, 1, len(header) + 1, 2**63, 2**64 - 1])
    return length.to_bytes(8, "little") + header + data


def spoil(name: str, content: bytes, rng: random.Random) -> bytes:
    """A file of this name, in a way that suits it."""
    if name.endswith((".json", ".jsonl")) and rng.random() < 0.8:
        return spoil_json(content, rng)
    return spoil_safetensors(content, rng) if name.endswith(".safetensors") else spoil_bytes(content, rng)
