"""Rows that go through a model together, and tokens that go through its head together."""
from collections.abc import Iterable, Sequence

CHUNK_LOGITS = 1 << 25  # 128 MiB in float32


def padded_batches(lengths: list[int], limit: int, rows: Iterable[int] | None = None) -> list[list[int]]:
    """Indices of all rows, or of `rows`, in batches, longest first, equals by index.

    Rows times the longest of them stays within `limit` padded tokens; a row that is longer goes alone.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)) if rows is None else rows, key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def shared_batches(prompts: Sequence[Sequence[int]], num_own: Sequence[int], limit: int,
                   rows: Iterable[int] | None = None) -> list[list[int]]:
    """Indices of all rows, or of `rows`, in batches of at most `limit` tokens, where equal prompts count once a batch.

    `num_own` is a row's tokens behind its prompt. Rows of one prompt stand together, the longest prompts first; a row
    that is longer than `limit` goes alone.
    """
    keys = [tuple(prompt) for prompt in prompts]
    rows = list(range(len(keys)) if rows is None else rows)
    longest, first = {}, {}
    for i in rows:
        longest[keys[i]] = max(longest.get(keys[i], 0), len(keys[i]) + num_own[i])
        first.setdefault(keys[i], i)
    batches: list[list[int]] = []
    held, tokens = set(), 0
    for i in sorted(rows, key=lambda i: (-longest[keys[i]], first[keys[i]], -num_own[i], i)):
        more = num_own[i] + (0 if keys[i] in held else len(keys[i]))
        if not batches or tokens + more > limit:
            batches.append([])
            held, tokens, more = set(), 0, num_own[i] + len(keys[i])
        batches[-1].append(i)
        held.add(keys[i])
        tokens += more
    return batches


def chunk_tokens(vocabulary: int) -> int:
    """Tokens whose logits over the whole vocabulary may live at once: as many as CHUNK_LOGITS hold, one at least."""
    return max(1, CHUNK_LOGITS // vocabulary)
