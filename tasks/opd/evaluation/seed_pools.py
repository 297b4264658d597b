"""How far seeds lie apart, estimated over all variants of a suite together: more degrees of freedom from few seeds.

Assumed is that all variants are equally stable over seeds; against `start`, too, that a seed does to each variant what
it does to no other. Bartlett's test says how well the first goes with what was measured; of three seeds a variant it
sees only large differences. Where one variant is less stable than the others its interval is too narrow, and theirs
are too wide. No torch.
"""
from dataclasses import dataclass

import numpy as np

BySeed = dict[int, float]                   # a variant's mean reward over prompts, by seed


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedPool:
    """The variance between seeds of one variant's mean reward, over `variants` of them, and what speaks against it."""
    variants: int
    alone: float                            # within variants: what stands in a difference to `start`
    alone_degrees: float                    # of freedom
    apart: float | None                     # seed x variant, without what seeds do to all: twice in a difference
    apart_degrees: float
    p_equal: float | None                   # Bartlett's, of equal variances; None: not estimable

    def of_difference(self, trained: int) -> tuple[float, float] | None:
        """Variance between seeds of a difference of which one or both sides (`trained`) are, and its degrees."""
        if trained == 1:
            return self.alone, self.alone_degrees
        return None if self.apart is None else (2 * self.apart, self.apart_degrees)


def seed_pool(means: list[BySeed]) -> SeedPool | None:
    """The pool of variants' means; None unless two variants have two seeds each.

    Degrees of freedom add up: S - 1 of each variant alone; (V - 1)(S - 1) for seed x variant, over the S seeds that all
    V variants have.
    """
    rows = [np.array([*row.values()]) for row in means if len(row) > 1]
    if len(rows) < 2:
        return None
    squares, degrees = sum(((row - row.mean()) ** 2).sum() for row in rows), sum(len(row) - 1 for row in rows)
    common = sorted(set.intersection(*(set(row) for row in means if len(row) > 1)))
    apart, apart_degrees = None, 0.0
    if len(common) > 1:
        table = np.array([[row[seed] for seed in common] for row in means if len(row) > 1])
        rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        apart_degrees = (len(table) - 1.0) * (len(common) - 1)
        apart = float((rest ** 2).sum()) / apart_degrees
    return SeedPool(variants=len(rows), alone=float(squares / degrees), alone_degrees=float(degrees), apart=apart,
                    apart_degrees=apart_degrees, p_equal=equal_variances(rows))


def equal_variances(rows: list[np.ndarray]) -> float | None:
    """Bartlett's p of equal variances, source: Bartlett, 1937; None where a variant's seeds are all alike."""
    from scipy import stats
    return float(stats.bartlett(*rows).pvalue) if all(row.var() > 0 for row in rows) else None
