"""Events with a few bytes wrong: cut, flipped, inserted, doubled."""

import random
from collections.abc import Iterator

from daemon_fakes import make_event

from alertprod.errors import InvalidEvent
from alertprod.stream.messages import decode_visit_ready, encode_event


def damage(rng: random.Random, value: bytearray) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(value)) if value else 0
        match rng.randrange(5):
            case 0:
                del value[at:]
            case 1 if value:
                value[at] ^= 1 << rng.randrange(8)
            case 2:
                value[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                value[at : at + rng.randint(1, 16)] = b""
            case 4:
                value[at:at] = value[rng.randrange(at + 1) :]
    return bytes(value)


def damaged_events(n: int, *, seed: int) -> Iterator[bytes]:
    """Yield damaged events of which none is valid."""
    rng = random.Random(seed)
    seeds = [encode_event(make_event(5000), format=wire_format) for wire_format in ("json", "avro")]
    while n:
        value = damage(rng, bytearray(rng.choice(seeds)))
        try:
            decode_visit_ready(value)
        except InvalidEvent:
            n -= 1
            yield value
