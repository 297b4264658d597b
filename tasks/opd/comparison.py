"""The product: variants against a baseline, paired over prompts, in a table that says what its numbers cover. No torch.

Each cell (variant, seed) is a mean reward a prompt. A variant's difference to the baseline is taken prompt by prompt,
averaged over its seeds, and its interval comes from resampling prompts. So the interval covers which prompts were
asked, not which seeds were run: with few seeds, look at the seeds' own columns. A cell that failed is shown as failed.
"""
import json
from dataclasses import asdict, dataclass

import numpy as np

from tasks.opd.records import derive_seed

RESAMPLES = 10_000
CHUNK = 500                       # resamples drawn at once
LEVEL = 0.95
START = "start"                   # the untrained student: one cell, the same for every seed
VERDICTS = ("worse", "not distinguishable", "better")

Rewards = dict[str, float]        # prompt_id -> mean reward over its samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant."""
    variant: str
    mean: float | None                          # mean reward over prompts and the seeds that finished
    by_seed: dict[int, float | None]            # mean reward of each seed; None: failed
    difference: float | None                    # mean paired difference to the baseline
    interval: tuple[float, float] | None        # of the difference, over prompts
    difference_by_seed: dict[int, float]        # of the seeds that both sides finished
    verdict: str                                # better, worse, not distinguishable, baseline, failed
    errors: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Variants compared with a baseline."""
    baseline: str
    num_prompts: int
    seeds: list[int]
    resamples: int
    rows: list[Row]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def to_markdown(self) -> str:
        """A Markdown table with its note; failures below."""
        header, *body = self.cells()
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header),
                 *("| " + " | ".join(row) + " |" for row in body), "", self.note()]
        return "\n".join(lines + [f"- {line}" for line in self.failures()])

    def to_text(self) -> str:
        """The same, aligned for a terminal."""
        table = self.cells()
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                           for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in table]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, "", self.note(), *self.failures()])

    def cells(self) -> list[list[str]]:
        """Header and rows as text, in percent and points."""
        header = ["variant", "mean", *(f"seed {s}" for s in self.seeds), f"vs {self.baseline}",
                  f"{LEVEL:.0%} interval", "verdict"]
        return [header, *(self.line(row) for row in self.rows)]

    def line(self, row: Row) -> list[str]:
        """One variant's cells."""
        shown = {} if row.variant == START else row.by_seed
        seeds = ["failed" if s in row.errors else percent(shown.get(s)) for s in self.seeds]
        interval = "" if row.interval is None else f"[{100 * row.interval[0]:+.1f}, {100 * row.interval[1]:+.1f}]"
        difference = "" if row.difference is None else f"{100 * row.difference:+.1f}"
        return [row.variant, percent(row.mean), *seeds, difference, interval, row.verdict]

    def note(self) -> str:
        """What the numbers are and what the interval covers."""
        count = len(self.seeds)
        return (f"Mean reward in percent and paired differences in points, over {self.num_prompts} prompts and {count} "
                f"seed{'s' if count != 1 else ''}. The interval is a bootstrap over prompts ({self.resamples:,} "
                "resamples): it covers the choice of prompts, not of seeds, so also see the seeds' own columns.")

    def failures(self) -> list[str]:
        """One line a failed cell."""
        return [f"{row.variant}, seed {seed}: failed: {(error.strip().splitlines() or ['no message'])[-1]}"
                for row in self.rows for seed, error in row.errors.items()]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def compare(cells: dict[tuple[str, int], Rewards | str], baseline: str, *, seed: int = 0,
            resamples: int = RESAMPLES) -> Comparison:
    """Compare every variant with `baseline`. A cell is {prompt_id: mean reward}, or the text of its error.

    `start` has one cell of any seed, which stands for every seed. A difference uses the seeds that both sides finished.
    Raises: ValueError when the baseline has no cell, or when cells were asked different prompts.
    """
    variants = list(dict.fromkeys(variant for variant, _ in cells))
    if baseline not in variants:
        raise ValueError(f"the baseline is {baseline!r}, but there are only {variants}")
    finished = {key: cell for key, cell in cells.items() if not isinstance(cell, str)}
    prompts = sorted(next(iter(finished.values()), {}))
    for key, cell in finished.items():
        if sorted(cell) != prompts:
            raise ValueError(f"{key} was asked other prompts ({len(cell)}) than {next(iter(finished))} "
                             f"({len(prompts)}); compare on one benchmark")
    rewards = {key: np.array([cell[p] for p in prompts]) for key, cell in finished.items()}
    errors = {key: cell for key, cell in cells.items() if isinstance(cell, str)}
    rows = [row_of(variant, baseline, rewards, errors, seed, resamples) for variant in variants]
    seeds = sorted({s for variant, s in cells if variant != START} or {s for _, s in cells})
    return Comparison(baseline=baseline, num_prompts=len(prompts), seeds=seeds, resamples=resamples, rows=rows)


def row_of(variant: str, baseline: str, rewards: dict, errors: dict, seed: int, resamples: int) -> Row:
    """One variant against the baseline."""
    own = {s: values for (name, s), values in rewards.items() if name == variant}
    failed = {s: text for (name, s), text in errors.items() if name == variant}
    against = {s: values for (name, s), values in rewards.items() if name == baseline}
    left, right = spread(own, variant, against), spread(against, baseline, own)
    paired = {s: left[s] - right[s] for s in sorted(left) if s in right and variant != baseline}
    difference = interval = None
    verdict = "baseline" if variant == baseline and own else "failed" if not own else "no baseline"
    if paired:
        per_prompt = np.mean(list(paired.values()), axis=0)
        difference, interval = float(per_prompt.mean()), bootstrap(per_prompt, derive_seed(seed, variant), resamples)
        verdict = VERDICTS[1 + int(interval[0] > 0) - int(interval[1] < 0)]
    return Row(variant=variant, mean=float(np.mean(list(own.values()))) if own else None,
               by_seed={s: float(v.mean()) for s, v in sorted(own.items())} | dict.fromkeys(failed),
               difference=difference, interval=interval, verdict=verdict, errors=failed,
               difference_by_seed={s: float(v.mean()) for s, v in paired.items()})


def spread(cells: dict[int, np.ndarray], name: str, other: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The cells by seed; the one of `start` stands for every seed of the other side."""
    return dict.fromkeys(other, next(iter(cells.values()))) if name == START and cells else cells


def bootstrap(differences: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The percentile interval (LEVEL) of the mean of n paired differences, by resampling them with replacement."""
    rng, count = np.random.default_rng(seed), len(differences)
    means = np.concatenate([differences[rng.integers(0, count, (min(CHUNK, resamples - i), count))].mean(axis=1)
                            for i in range(0, resamples, CHUNK)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
