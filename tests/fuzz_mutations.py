"""Hostile inputs made from valid ones: JSON and its relatives changed by structure, everything else by bytes."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

Files = Mapping[str, bytes]
Mutation = Callable[[Random, bytes], bytes]

MAX_BYTES = 1_000_000  # an input of the fuzzer; limits of the parsers have tests of their own
_HOLE = "@@hostile@@"
# JSON as text: most of it is what `json.dumps` would never write.
_FRAGMENTS = (
    *('"\\u003a"', '"\\u003A:"', '{"a:":":","a:":1}', '{"\\u0061":1,"a":2}', "18446744073709551616", "-0", "1.0"),
    *("null", "true", "false", "0", "-1", "1", "0.5", "-0.0", "1e308", "1e999", "-1e999", "NaN", "-Infinity"),
    *(str(2**31), str(2**53 + 1), str(2**63), str(-(2**64)), "9" * 310, "9" * 4200, "9" * 5000, "1e-400", "00", "0x10"),
    *('""', '" "', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\u202e"', '"é"', '"\u2028"', '"/etc/passwd"'),
    *('"../../../etc/passwd"', '"a\\nb: c\\r\\n\\r\\n"', '"auto"', '"sql@1"', '"1e999"', '"' + "a" * 70_000 + '"'),
    *("[]", "{}", "[[]]", "[null]", '{"":0}', '{"a":1,"a":2}', "[1,[2,[3]]]", "[" + "0," * 5000 + "0]", '[{},"a",1.5]'),
    *('"\x01"', "'a'", "{", "]", "", "/**/1", "1 2", "\ufeff1", '"' + "'msg': '" * 4000 + '"', '"' + "/a" * 9000 + '"'),
)  # fmt: skip


def mutate(random: Random, files: Files) -> dict[str, bytes]:
    """`files` with one to three changes; now and then two files change places."""
    changed = dict(files)
    names = sorted(changed)
    if len(names) > 1 and random.random() < 0.08:
        one, other = random.sample(names, 2)
        changed[one], changed[other] = changed[other], changed[one]
    if len(names) > 1 and random.random() < 0.04:
        del changed[names.pop(random.randrange(len(names)))]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(names)
        if name in changed:
            changed[name] = _changed(random, changed[name])[:MAX_BYTES]
    return changed


def _changed(random: Random, content: bytes) -> bytes:
    if content.startswith(b"\x1f\x8b") and random.random() < 0.8:
        return gzip.compress(_changed(random, gzip.decompress(content)), 1) if _is_gzip(content) else content
    if _header_length(content) is not None and random.random() < 0.8:
        return _header_changed(random, content)
    lines = content.split(b"\n")
    if len(lines) > 2 and random.random() < 0.7:
        at = random.randrange(len(lines))
        lines[at] = _document_changed(random, lines[at])
        return b"\n".join(lines)
    return _document_changed(random, content)


def _document_changed(random: Random, content: bytes) -> bytes:
    if content.startswith(b"data: ") and random.random() < 0.9:  # an event of a stream
        return b"data: " + _document_changed(random, content[6:])
    if random.random() < 0.75:
        try:
            return _json_changed(random, json.loads(content))
        except (ValueError, RecursionError):
            pass
    return random.choice(_BYTE_MUTATIONS)(random, content)


def _json_changed(random: Random, document: object) -> bytes:
    """One place holds a hostile fragment, is gone, is there twice, or has another name."""
    container, key = _place(random, document)
    if isinstance(container, dict) and key in container and random.random() < 0.2:
        value = container.pop(key)
        if random.random() < 0.5:
            container[str(key) + random.choice(("", " ", "\0", "\ud800", "x"))] = value
        return json.dumps(document).encode()
    if container is None:
        return _fragment(random).encode("utf-8", "surrogatepass")
    container[key] = _HOLE
    text = json.dumps(document, ensure_ascii=random.random() < 0.5)
    filled = text.replace(f'"{_HOLE}"', _fragment(random))
    if random.random() < 0.1:  # a key twice
        filled = filled.replace("{", '{"model": 1, "model": 2, ', 1)
    return filled.encode("utf-8", "surrogatepass")


def _place(random: Random, document: Any) -> tuple[Any, Any]:
    """A random place: a container and the key or index in it; no container where the document is none."""
    container, key = None, None
    while isinstance(document, (dict, list)) and document and (container is None or random.random() < 0.7):
        container = document
        key = random.choice(sorted(document)) if isinstance(document, dict) else random.randrange(len(document))
        document = container[key]
    return container, key


def _fragment(random: Random) -> str:
    if random.random() < 0.12:
        depth = random.choice((60, 64, 65, 66, *range(100, 1100, 25), 5000, 100_000))
        opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
        nested: str = opening * depth + "1" + closing * depth * random.choice((1, 1, 1, 0))
        return nested
    return random.choice(_FRAGMENTS)


def _header_length(content: bytes) -> int | None:
    """The length of a safetensors header, where `content` begins with one."""
    if len(content) < 10 or content[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", content[:8])
    return length if length <= len(content) - 8 else None


def _header_changed(random: Random, content: bytes) -> bytes:
    length = _header_length(content) or 0
    header = _document_changed(random, content[8 : 8 + length])
    claimed = random.choice((len(header), len(header), len(header), len(header) + 1, 0, 2**63, 2**64 - 1))
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def _is_gzip(content: bytes) -> bool:
    try:
        gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error):
        return False
    return True


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _flip(random: Random, content: bytes) -> bytes:
    if not content:
        return bytes([random.randrange(256)])
    at = random.randrange(len(content))
    return content[:at] + bytes([random.randrange(256)]) + content[at + 1 :]


def _insert(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    words = (
        b"\0",
        b"\n",
        b"\r\n",
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b'"',
        b"{",
        b"}",
        b"data: ",
        b"&a [*a]",
        b"!!timestamp ",
        b"!!bool ",
    )
    return content[:at] + random.choice(words) * random.choice((1, 1, 2, 1000)) + content[at:]


def _repeat(random: Random, content: bytes) -> bytes:
    start = random.randrange(len(content) + 1)
    piece = content[start : start + random.randrange(1, 200)]
    return content[:start] + piece * random.choice((2, 3, 1000)) + content[start:]


def _replace(random: Random, content: bytes) -> bytes:
    """One word of the text is a hostile fragment: what reaches YAML, names and headers."""
    words = content.split(b" ")
    words[random.randrange(len(words))] = _fragment(random).encode("utf-8", "surrogatepass")
    return b" ".join(words)


def _noise(random: Random, _content: bytes) -> bytes:
    return random.randbytes(random.randrange(200))


_BYTE_MUTATIONS: tuple[Mutation, ...] = (_cut, _flip, _insert, _repeat, _replace, _noise)
