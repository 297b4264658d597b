"""Seeds: all randomness of a run derives from its seed by hashing."""
import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed hashed from (run seed, round, prompt, sample, ...): neighbours share nothing."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
