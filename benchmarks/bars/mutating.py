"""Operators that damage a file: on its bytes, and on the numbers, words, brackets and lines that stand in it."""

from __future__ import annotations

import random
import re
import struct

NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
WORD = re.compile(rb"[A-Za-z_/#][\w/.#]*")
NUMBERS = (
    b"0", b"-1",
    b"1e308", b"-1e308", b"1e400", b"nan", b"NaN", b"inf", b"-Infinity", b"Infinity", b"9223372036854775808",
    b"2147483648", b"-2147483649", b"4294967296", b"1e-320", b"0x7fffffff", b"0x" + b"f" * 6000, b"9" * 5000, b"999999",
    b"1_000", b"true", b"null", b'"text"', b"[]", b"{}", b"", b"3.5", b"1e9", b"255", b"1000000000000",
)  # fmt: skip
WORDS = (
    b"", b"\xff\xfe", b"\x1b[2J\x1b]0;owned\x07", b"\0", b"\xe2\x80\xae", b"a" * 3000, b"\xc3\xa4", b"..", b"self",
    b"job", b"name", b"__class__", b"%s%n{0}{why}", b"'", b'"', b'"""', b"data_", b"loop_", b"_rlnImageName", b"null",
    b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b"s3://", b"~nobody/x", b"O", b"|O8", b"<U0", b"V8", b"<M8", b"\r", b"\n",
)  # fmt: skip
OPENERS = (
    b"[",
    b"{",
    b"(",
    b'[{"a":',
    b"{a=",
    b"[[",
    b"a.",
    b"'",
    b'"',
    b"_x\n",
    b"\xf0\x9f\x92\xa9",
    b"data_a\n",
    b"[a.",
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes after one to four operators, chosen at random."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(OPERATORS)(data, rng)
    return data


def _span(data: bytes, rng: random.Random, longest: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randint(1, longest))


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _flip_early(data: bytes, rng: random.Random) -> bytes:
    head = min(len(data), 256)
    return _flip(data[:head], rng) + data[head:]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng, rng.choice((1, 8, 4096)))
    return data[:start] + data[stop:]


def _duplicate(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng, rng.choice((8, 512, 4096)))
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 50)) + data[stop:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at] + rng.choice((rng.randbytes(rng.randint(1, 40)), rng.choice(WORDS), rng.choice(NUMBERS))) + data[at:]
    )


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _swap(data: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _number(data: bytes, rng: random.Random) -> bytes:
    return _replaced(data, NUMBER, rng.choice(NUMBERS), rng)


def _word(data: bytes, rng: random.Random) -> bytes:
    return _replaced(data, WORD, rng.choice(WORDS), rng)


def _rename(data: bytes, rng: random.Random) -> bytes:
    """Give one word the name of another, everywhere or once: labels twice, wrong types, references to nothing."""
    words = WORD.findall(data)
    if not words:
        return data
    return data.replace(rng.choice(words), rng.choice(words), rng.choice((1, -1)))


def _retype(data: bytes, rng: random.Random) -> bytes:
    """Put a word where a number was, or a number where a word was."""
    return _replaced(data, *((NUMBER, rng.choice(WORDS)) if rng.random() < 0.5 else (WORD, rng.choice(NUMBERS))), rng)


def _nest(data: bytes, rng: random.Random) -> bytes:
    deep = rng.choice(OPENERS) * rng.choice((100, 1100, 5000, 30_000))
    if rng.random() < 0.5:
        return _replaced(data, NUMBER, deep, rng)
    at = rng.randrange(len(data) + 1)
    return data[:at] + deep + data[at:]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[a : a + rng.choice((1, 1, 3))]
        case 1:
            lines[a], lines[b] = lines[b], lines[a]
        case 2:
            lines.insert(b, lines[a])
        case _:
            lines[a] = lines[a] + b" " + lines[b]
    return b"\n".join(lines)


def _poke(data: bytes, rng: random.Random) -> bytes:
    """Overwrite some bytes by a binary number that is no usual one."""
    at = rng.randrange(len(data) + 1)
    odd = rng.choice(
        (0x7FF8000000000000, 0x7FEFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x8000000000000000, 0x7F8000007F800000)
    )
    raw = struct.pack("<Q", odd)[: rng.choice((4, 8))]
    return data[:at] + raw + data[at + len(raw) :]


def _replaced(data: bytes, pattern: re.Pattern[bytes], new: bytes, rng: random.Random) -> bytes:
    found = list(pattern.finditer(data))
    if not found:
        return data
    one = rng.choice(found)
    return data[: one.start()] + new + data[one.end() :]


OPERATORS = (
    _flip, _flip_early, _delete, _duplicate, _insert, _truncate, _swap, _number, _number, _word, _rename, _retype,
    _nest,
    _lines, _poke,
)  # fmt: skip
