"""Rows that go through a model together."""
from collections.abc import Iterable


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
