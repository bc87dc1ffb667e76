"""Random changes of the bytes of a file."""

import contextlib
import json
import random

STRANGE = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, 1e308, "", "x" * 1000, "../../etc/passwd", [], {},
    [[]], {"a": None}, "\ud800", "\x1b[31m<script>",
)  # fmt: skip


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Other bytes: those of a JSON object with another value, or with pieces changed."""
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, UnicodeDecodeError, IndexError):
            lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
            index = rng.randrange(len(lines))
            values = json.loads(lines[index])
            values.pop("checksum", None)
            _change(rng, values)
            lines[index] = json.dumps(values)
            return "\n".join(lines).encode() + b"\n"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 2, 4, 16, 256)))
        match rng.randrange(6):
            case 0 if start < len(data):
                data[start] ^= 1 << rng.randrange(8)
            case 1:
                data[start:end] = rng.randbytes(end - start)
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = data[start:end] * rng.choice((1, 2, 50))
            case 4:
                del data[start:]
            case _:
                data[start:end] = rng.choice((b"\0", b"\xff")) * (end - start)
    return bytes(data)


def _change(rng: random.Random, values) -> None:
    """Puts something strange in a random place of a JSON value."""
    while True:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        key = rng.choice(keys)
        inner = values[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            values = inner
            continue
        match rng.randrange(4):
            case 0 if isinstance(values, dict):
                del values[key]
            case 1 if isinstance(values, dict):
                values[rng.choice(("", "extra", "../x"))] = inner
            case _:
                values[key] = rng.choice(STRANGE)
        return
