"""The product: variants against a baseline, paired over prompts, in a table that says what its numbers cover. No torch.

Each cell (variant, seed) is a mean reward a prompt. A variant's difference to the baseline is taken prompt by prompt,
averaged over its seeds, and its interval comes from resampling prompts. So the interval covers which prompts were
asked, not which seeds were run: with few seeds, look at the seeds' own columns. The difference to a variant's placebo
is made the same way. Below the rewards stands what they cost (see `cell_costs`). A cell that failed is shown as failed.
"""
import json
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from tasks.opd.core.costs import TRAINED
from tasks.opd.core.seeds import derive_seed
from tasks.opd.evaluation.cell_costs import NOTE, Costs, cost_tables, mean_of

RESAMPLES = 10_000
CHUNK = 500                       # resamples drawn at once
LEVEL = 0.95
WIDTH = 120                       # of the note in a terminal, characters
EQUAL = 0.01                      # trained tokens are called equal when no two cells differ by more, of the largest
START = "start"                   # the untrained student: one cell, the same for every seed
VERDICTS = ("worse", "not distinguishable", "better")
BEATEN = ("not above its placebo", "above its placebo")

Rewards = dict[str, float]                      # prompt_id -> mean reward over its samples
Cells = dict[int, np.ndarray]                   # seed -> mean rewards, prompts in one order
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant."""
    variant: str
    mean: float | None                          # mean reward over prompts and the seeds that finished
    by_seed: dict[int, float | None]            # mean reward of each seed; None: failed
    reverse_kl: float | None                    # to the teacher, nats a token of the answers, mean over seeds
    difference: float | None                    # mean paired difference to the baseline
    interval: Interval | None                   # of the difference, over prompts
    difference_by_seed: dict[int, float]        # of the seeds that both sides finished
    verdict: str                                # better, worse, not distinguishable, baseline, failed
    placebo: str                                # the variant this one must beat; empty: none
    placebo_difference: float | None            # mean paired difference to the placebo; None: not to be had
    placebo_interval: Interval | None
    placebo_difference_by_seed: dict[int, float]
    placebo_verdict: str                        # one of BEATEN; empty: not compared
    costs: Costs                                # means over the seeds that finished
    trained_by_seed: dict[int, int]             # trained tokens of each seed, where known
    errors: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Variants compared with a baseline."""
    baseline: str
    num_prompts: int
    seeds: list[int]
    resamples: int
    trained_difference: float | None            # (largest - smallest) / largest trained tokens over cells; None: < 2
    trained_equal: bool | None                  # whether that is at most EQUAL
    rows: list[Row]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def to_markdown(self, facts: dict[str, str] | None = None) -> str:
        """Markdown tables, their note, failures; above them, when given, a line of facts (see `provenance`)."""
        seeds = ", ".join(map(str, self.seeds))
        above = ["; ".join(f"{name}: {fact}" for name, fact in {**facts, "seeds": seeds}.items()), ""] if facts else []
        lines = [line for table in self.tables() for line in (*in_markdown(table), "")]
        listed = [f"- {line}" for line in [*self.placebos(), *self.failures()]]
        return "\n".join([*above, *lines, " ".join(self.note()), *([""] if listed else []), *listed])

    def to_text(self) -> str:
        """The same, aligned for a terminal, the note wrapped."""
        lines = [line for table in self.tables() for line in (*aligned(table), "")]
        note = [textwrap.fill(sentence, WIDTH, break_on_hyphens=False) for sentence in self.note()]
        return "\n".join([*lines, *note, *self.placebos(), *self.failures()])

    def tables(self) -> list[list[list[str]]]:
        """The rewards, and what they cost where that is known; each is a header and rows, as text.

        The untrained student cost nothing and has no line among the costs.
        """
        return [self.cells(), *cost_tables([(row.variant, percent(row.mean), row.costs) for row in self.rows
                                            if row.variant != START])]

    def cells(self) -> list[list[str]]:
        """Header and rows as text, in percent and points; columns nobody fills are left out."""
        placebos, known = self.has_placebos(), self.has_divergences()
        header = ["variant", "mean", *(["reverse KL"] if known else ()), *(f"seed {s}" for s in self.seeds),
                  f"vs {self.baseline}", *(["vs placebo"] if placebos else ()), "verdict"]
        return [header, *(self.line(row, placebos, known) for row in self.rows)]

    def line(self, row: Row, placebos: bool, divergences: bool) -> list[str]:
        """One variant's cells."""
        shown = {} if row.variant == START else row.by_seed
        seeds = ["failed" if s in row.errors else percent(shown.get(s)) for s in self.seeds]
        mark = f", {row.placebo_verdict}" if row.placebo_verdict == BEATEN[0] else ""
        missing = "-" if row.placebo else ""
        placebo = [points(row.placebo_difference, row.placebo_interval) or missing] if placebos else []
        apart = ["" if row.reverse_kl is None else f"{row.reverse_kl:.3f}"] if divergences else []
        return [row.variant, percent(row.mean), *apart, *seeds, points(row.difference, row.interval), *placebo,
                row.verdict + mark]

    def note(self) -> list[str]:
        """What the numbers are and what the intervals cover, by sentences."""
        count = len(self.seeds)
        said = [f"Mean reward in percent and paired differences in points with their {LEVEL:.0%} intervals, over "
                f"{self.num_prompts} prompts and {count} seed{'s' if count != 1 else ''}.",
                f"An interval is a bootstrap over prompts ({self.resamples:,} resamples): it covers the choice of "
                "prompts, not of seeds, so also see the seeds' own columns."]
        if self.has_divergences():
            said.append("Reverse KL is that to the teacher in nats a token, the mean over the tokens of the student's "
                        "answers: 0 where both are the same.")
        if len(self.tables()) > 1:
            said += [NOTE, *self.trained_note()]
        if self.has_placebos():
            said.append(f"A variant marked `{BEATEN[0]}` was not shown to do more than its control: the interval of "
                        "its paired difference to its placebo starts at or below 0; -: could not be compared.")
        return said

    def trained_note(self) -> list[str]:
        """Whether the cells trained on as many tokens; nothing of fewer than two cells."""
        known = sorted((tokens, f"{row.variant}, seed {s}") for row in self.rows
                       for s, tokens in row.trained_by_seed.items())
        if self.trained_difference is None:
            return []
        finished = sum(mean is not None for row in self.rows if row.variant != START for mean in row.by_seed.values())
        missing = f" Not known of {finished - len(known)} more." if finished > len(known) else ""
        by = f"largest relative difference {self.trained_difference:.1%}"
        if self.trained_equal:
            within = f" within {EQUAL:.0%}" if self.trained_difference else ""
            return [f"Trained tokens are equal{within} in {len(known)} cells ({by}).{missing}"]
        (low, least), (high, most) = known[0], known[-1]
        return [f"Trained tokens are NOT equal ({by}): from {low:,} ({least}) to {high:,} ({most}).{missing}"]

    def has_divergences(self) -> bool:
        """Whether a trained student's divergence to its teacher was measured."""
        return any(row.reverse_kl is not None for row in self.rows if row.variant != START)

    def has_placebos(self) -> bool:
        """Whether a variant's placebo is among what is compared; a suite without any says nothing of them."""
        there = {row.variant for row in self.rows}
        return any(row.placebo in there for row in self.rows)

    def placebos(self) -> list[str]:
        """One line a placebo: whose it is."""
        if not self.has_placebos():
            return []
        states = {row.variant: "" if row.mean is not None else ", but failed" for row in self.rows}
        return [f"{name} is the placebo of {', '.join(r.variant for r in self.rows if r.placebo == name)}"
                f"{states.get(name, ', but is not compared here')}"
                for name in dict.fromkeys(row.placebo for row in self.rows if row.placebo)]

    def failures(self) -> list[str]:
        """One line a failed cell."""
        return [f"{row.variant}, seed {seed}: failed: {(error.strip().splitlines() or ['no message'])[-1]}"
                for row in self.rows for seed, error in row.errors.items()]


def in_markdown(table: list[list[str]]) -> list[str]:
    """Lines of a table, a rule under the header."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return [lines[0], "|" + " --- |" * len(table[0]), *lines[1:]]


def aligned(table: list[list[str]]) -> list[str]:
    """Lines of a table, words to the left and numbers to the right, a rule under the header."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    words = {i for i, header in enumerate(table[0]) if i == 0 or header == "verdict"}
    lines = ["  ".join(cell.ljust(width) if i in words else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in table]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def points(difference: float | None, interval: Interval | None) -> str:
    """`+1.2 [-0.3 +2.7]`; empty when there is none."""
    return "" if difference is None else f"{100 * difference:+.1f} [{100 * interval[0]:+.1f} {100 * interval[1]:+.1f}]"


def provenance(suite: str, overrides: list[str], benchmark: str, environment: dict) -> dict[str, str]:
    """Facts of a table made now by `opd compare`; `environment` is {"device": kind, "versions": {name: version}}."""
    command = ["opd", "compare", suite, *overrides]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "command": f"`{shlex.join(command)}`",
            "benchmark": benchmark, "device": environment["device"], "versions": versions}


def compare(cells: dict[tuple[str, int], Rewards | str], baseline: str, *,
            spent: dict[tuple[str, int], Costs] | None = None,
            divergences: dict[tuple[str, int], float] | None = None, placebos: dict[str, str] | None = None,
            seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare every variant with `baseline`. A cell is {prompt_id: mean reward}, or the text of its error.

    `spent` has the costs of cells, `divergences` their mean reverse KL to the teacher in nats a token, `placebos` the
    variant that a variant must beat; all may be incomplete.
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
    grouped = {variant: seeds_of(variant, rewards) for variant in variants}
    rows = [row_of(variant, baseline, (placebos or {}).get(variant, ""), grouped, seeds_of(variant, errors),
                   seeds_of(variant, spent or {}), [*seeds_of(variant, divergences or {}).values()],
                   partial(bootstrap, seed=derive_seed(seed, variant), resamples=resamples)) for variant in variants]
    trained = [tokens for row in rows for tokens in row.trained_by_seed.values()]
    apart = (max(trained) - min(trained)) / max(*trained, 1) if len(trained) > 1 else None
    seeds = sorted({s for variant, s in cells if variant != START} or {s for _, s in cells})
    return Comparison(baseline=baseline, num_prompts=len(prompts), seeds=seeds, resamples=resamples, rows=rows,
                      trained_difference=apart, trained_equal=None if apart is None else apart <= EQUAL)


def seeds_of(variant: str, values: dict[tuple[str, int], Any]) -> dict[int, Any]:
    """By seed what is given by (variant, seed)."""
    return {s: value for (name, s), value in values.items() if name == variant}


def row_of(variant: str, baseline: str, placebo: str, rewards: dict[str, Cells], errors: dict[int, str],
           spent: dict[int, Costs], divergences: list[float], interval_of: Callable[[np.ndarray], Interval]) -> Row:
    """One variant against the baseline and its placebo; `rewards` are all variants', the rest is its own."""
    own = rewards[variant]
    difference, interval, by_seed = paired(variant, baseline, rewards, interval_of)
    verdict = "baseline" if variant == baseline and own else "failed" if not own else "no baseline"
    if interval:
        verdict = VERDICTS[1 + int(interval[0] > 0) - int(interval[1] < 0)]
    control, control_interval, control_by_seed = paired(variant, placebo, rewards, interval_of)
    return Row(variant=variant, mean=float(np.mean(list(own.values()))) if own else None,
               by_seed={s: float(v.mean()) for s, v in sorted(own.items())} | dict.fromkeys(errors),
               reverse_kl=float(np.mean(divergences)) if divergences else None,
               difference=difference, interval=interval, difference_by_seed=by_seed, verdict=verdict, errors=errors,
               placebo=placebo, placebo_difference=control, placebo_interval=control_interval,
               placebo_difference_by_seed=control_by_seed,
               placebo_verdict=BEATEN[int(control_interval[0] > 0)] if control_interval else "",
               costs=mean_of(list(spent.values())),
               trained_by_seed={s: c.tokens[TRAINED] for s, c in sorted(spent.items()) if TRAINED in c.tokens})


def paired(variant: str, other: str, rewards: dict[str, Cells], interval_of: Callable[[np.ndarray], Interval]
           ) -> tuple[float | None, Interval | None, dict[int, float]]:
    """Mean paired difference of a variant to another, its interval, and by seed; None where no seed has both."""
    own, against = rewards[variant], rewards.get(other, {})
    left, right = spread(own, variant, against), spread(against, other, own)
    found = {s: left[s] - right[s] for s in sorted(left) if s in right and variant != other}
    if not found:
        return None, None, {}
    per_prompt = np.mean(list(found.values()), axis=0)
    return float(per_prompt.mean()), interval_of(per_prompt), {s: float(v.mean()) for s, v in found.items()}


def spread(cells: Cells, name: str, other: Cells) -> Cells:
    """The cells by seed; the one of `start` stands for every seed of the other side."""
    return dict.fromkeys(other, next(iter(cells.values()))) if name == START and cells else cells


def bootstrap(differences: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The percentile interval (LEVEL) of the mean of n paired differences, by resampling them with replacement."""
    rng, count = np.random.default_rng(seed), len(differences)
    means = np.concatenate([differences[rng.integers(0, count, (min(CHUNK, resamples - i), count))].mean(axis=1)
                            for i in range(0, resamples, CHUNK)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
