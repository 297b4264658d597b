"""A comparison as text: tables of rewards and of costs, and a note that says what the numbers cover. No torch."""
import shlex
import textwrap
from datetime import UTC, datetime

from tasks.opd.core.tables import aligned, in_markdown, percent, points
from tasks.opd.evaluation import pass_curves, tuned
from tasks.opd.evaluation.cell_costs import NOTE, cost_tables
from tasks.opd.evaluation.comparison import BEATEN, EQUAL, START, Comparison, Row
from tasks.opd.evaluation.seed_pools import SeedPool
from tasks.opd.evaluation.statistics import ALPHA, LEVEL, MIN_SEEDS

WIDTH = 120                       # of the note in a terminal, characters


def to_markdown(found: Comparison, facts: dict[str, str] | None = None) -> str:
    """Markdown tables, their note, failures; above them, when given, a line of facts (see `provenance`)."""
    seeds = ", ".join(map(str, found.seeds))
    above = ["; ".join(f"{name}: {fact}" for name, fact in {**facts, "seeds": seeds}.items()), ""] if facts else []
    lines = [line for table in tables(found) for line in (*in_markdown(table), "")]
    listed = [f"- {line}" for line in [*pass_curves.narrowed(found), *placebos(found), *failures(found)]]
    return "\n".join([*above, *lines, " ".join(note(found)), *([""] if listed else []), *listed])


def to_text(found: Comparison) -> str:
    """The same, aligned for a terminal, the note wrapped."""
    lines = [line for table in tables(found) for line in (*aligned(table), "")]
    said = [textwrap.fill(sentence, WIDTH, break_on_hyphens=False) for sentence in note(found)]
    return "\n".join([*lines, *said, *pass_curves.narrowed(found), *placebos(found), *failures(found)])


def provenance(suite: str, overrides: list[str], benchmark: str, environment: dict) -> dict[str, str]:
    """Facts of a table made now by `opd compare`; `environment` is {"device": kind, "versions": {name: version}}."""
    command = ["opd", "compare", suite, *overrides]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "command": f"`{shlex.join(command)}`",
            "benchmark": benchmark, "device": environment["device"], "versions": versions}


def tables(found: Comparison) -> list[list[list[str]]]:
    """The rewards, pass@k where asked for, what they cost where that is known, tuning; each a header and rows, as text.

    The untrained student cost nothing and has no line among the costs.
    """
    curves, tuning = pass_curves.curve_table(found), tuned.tuning_table(found.tuning)
    return [cells(found), *filter(None, [curves]), *costs_of(found), *filter(None, [tuning])]


def costs_of(found: Comparison) -> list[list[list[str]]]:
    """The tables of what the variants cost; none where nothing is known."""
    return cost_tables([(row.variant, percent(row.mean), row.costs) for row in found.rows if row.variant != START])


def cells(found: Comparison) -> list[list[str]]:
    """Header and rows as text, in percent and points; columns nobody fills are left out."""
    header = ["variant", "mean", "reverse KL", *(f"seed {s}" for s in found.seeds), "seed SD", f"vs {found.baseline}",
              "vs placebo", "verdict"]
    left_out = {"reverse KL": not any_divergence(found), "vs placebo": not any_placebo(found),
                "seed SD": all(num_finished(row) < MIN_SEEDS for row in found.rows if row.variant != START)}
    table = [header, *(line(row, found.seeds) for row in found.rows)]
    return [[cell for name, cell in zip(header, row) if not left_out.get(name)] for row in table]


def line(row: Row, seeds: list[int]) -> list[str]:
    """One variant's cells, in every column."""
    shown = {} if row.variant == START else row.by_seed
    by_seed = ["failed" if s in row.errors else percent(shown.get(s)) for s in seeds]
    mark = f", {row.placebo_verdict}" if row.placebo_verdict == BEATEN[0] else ""
    placebo = points(row.placebo_difference, row.placebo_interval) or ("-" if row.placebo else "")
    return [row.variant, percent(row.mean), "" if row.reverse_kl is None else f"{row.reverse_kl:.3f}", *by_seed,
            deviation(row), points(row.difference, row.interval), placebo, row.verdict + mark]


def deviation(row: Row) -> str:
    """The standard deviation over seeds, in points; `-` where too few seeds finished, empty for the start."""
    if row.variant == START or row.mean is None:
        return ""
    return percent(row.seed_sd) if num_finished(row) >= MIN_SEEDS else "-"


def num_finished(row: Row) -> int:
    """Seeds of a variant that finished."""
    return sum(mean is not None for mean in row.by_seed.values())


def note(found: Comparison) -> list[str]:
    """What the numbers are, what the intervals cover and what a verdict means, by sentences."""
    count, templated = len(found.seeds), found.num_clusters < found.num_prompts
    kin = f" ({found.num_clusters} clusters of one template or source)" if templated else ""
    said = [f"Mean reward in percent and paired differences in points with their {LEVEL:.0%} intervals, over "
            f"{found.num_prompts} prompts{kin} and {count} seed{'s' if count != 1 else ''}.", *coverage(found)]
    if (compared := sum(row.p is not None for row in found.rows)) > 1:
        said.append(f"A verdict is adjusted for all {compared} comparisons with {found.baseline} (Holm, {ALPHA:.0%}); "
                    "a single interval is not, and may leave out 0 where the verdict does not distinguish.")
    if any_divergence(found):
        said.append("Reverse KL is that to the teacher in nats a token, the mean over the tokens of the student's "
                    "answers: 0 where both are the same.")
    if costs_of(found):
        said += [NOTE, *spent_note(found)]
    said += [pass_curves.NOTE] if found.pass_at else []
    said += [tuned.NOTE] if found.tuning else []
    if any_placebo(found):
        said.append(f"A variant marked `{BEATEN[0]}` was not shown to do more than its control: its paired difference "
                    f"to its placebo is not above 0 (Holm over the comparisons with placebos, {ALPHA:.0%}); "
                    "-: could not be compared.")
    return said


def coverage(found: Comparison) -> list[str]:
    """What the intervals cover: seeds and prompts, or prompts only, where seeds are too few."""
    rows = [row for row in found.rows if row.interval]
    crossed = [row.variant for row in rows if row.seeds_covered]
    few = [row.variant for row in rows if not row.seeds_covered]
    said = []
    if crossed:
        which = "An interval" if not few else f"An interval of {MIN_SEEDS} seeds or more"
        said.append(f"{which} covers the choice of seeds and that of prompts (crossed random effects, Satterthwaite's "
                    "degrees of freedom); seed SD is the standard deviation of the seeds' means, in points.")
    if pool := found.seed_pool:
        said.append(pooling(pool, found.baseline))
    if few:
        whose = f" of {', '.join(few)}" if crossed else ""
        said.append(f"With fewer than {MIN_SEEDS} seeds: seed variance not estimable{whose}; the interval covers the "
                    "choice of prompts, not of seeds, and other seeds may turn the verdict.")
    return said


def pooling(pool: SeedPool, baseline: str) -> str:
    """What is assumed where the variance between seeds is pooled, and how well that goes with the seeds."""
    known = pool.of_difference(1 if baseline == START else 2)
    if known is None:
        return ("The variance between seeds could not be pooled, since no two seeds are common to all variants: each "
                "comparison takes its own.")
    test = "not to be tested, for a variant's seeds are all alike"
    if pool.p_equal is not None:
        test = f"Bartlett's test of that: p = {pool.p_equal:.3f}"
        test += ", so it does not hold here: take seed_variance: own" if pool.p_equal < ALPHA else ""
    return (f"The variance between seeds is pooled over {pool.variants} variants ({known[1]:g} degrees of "
            f"freedom): assumes that all variants are equally stable over seeds ({test})"
            f"{' and that no seed is lucky for all of them' if baseline == START else ''}.")


def spent_note(found: Comparison) -> list[str]:
    """Whether the cells spent as much of the budget's currency; nothing of fewer than two cells."""
    known = sorted((amount, f"{row.variant}, seed {s}") for row in found.rows
                   for s, amount in row.spent_by_seed.items())
    if found.spent_difference is None:
        return []
    finished = sum(num_finished(row) for row in found.rows if row.variant != START)
    missing = f" Not known of {finished - len(known)} more." if finished > len(known) else ""
    name = found.currency.replace("_", " ").capitalize()
    by = f"largest relative difference {found.spent_difference:.1%}"
    if found.spent_equal:
        within = f" within {EQUAL:.0%}" if found.spent_difference else ""
        return [f"{name} are equal{within} in {len(known)} cells ({by}).{missing}"]
    (low, least), (high, most) = known[0], known[-1]
    return [f"{name} are NOT equal ({by}): from {low:,.10g} ({least}) to {high:,.10g} ({most}).{missing}"]


def any_divergence(found: Comparison) -> bool:
    """Whether a trained student's divergence to its teacher was measured."""
    return any(row.reverse_kl is not None for row in found.rows if row.variant != START)


def any_placebo(found: Comparison) -> bool:
    """Whether a variant's placebo is among what is compared; a suite without any says nothing of them."""
    there = {row.variant for row in found.rows}
    return any(row.placebo in there for row in found.rows)


def placebos(found: Comparison) -> list[str]:
    """One line a placebo: whose it is."""
    if not any_placebo(found):
        return []
    states = {row.variant: "" if row.mean is not None else ", but failed" for row in found.rows}
    return [f"{name} is the placebo of {', '.join(r.variant for r in found.rows if r.placebo == name)}"
            f"{states.get(name, ', but is not compared here')}"
            for name in dict.fromkeys(row.placebo for row in found.rows if row.placebo)]


def failures(found: Comparison) -> list[str]:
    """One line a failed cell, or trial."""
    return [f"{row.variant}, seed {seed}: failed: {(error.strip().splitlines() or ['no message'])[-1]}"
            for row in found.rows for seed, error in row.errors.items()] + tuned.failures(found.tuning)
