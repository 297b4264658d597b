"""A comparison in words: the first line of a page."""
from tasks.opd.evaluation.comparison import VERDICTS

WORSE, EVEN, BETTER = VERDICTS


def of_suite(rows: list[dict], baseline: str, benchmark: str, left: int = 0) -> str:
    """One sentence on the best variant, one on the others; `rows` are a comparison's, as JSON has them.

    `left` is how many cells have not been run.
    """
    trained = [row for row in ranked(rows) if row["variant"] not in (baseline, "start")]
    failed = [row["variant"] for row in rows if row["verdict"] == "failed"]
    told = [first(trained, baseline, benchmark)] if trained else [f"No variant has been compared with {baseline} yet."]
    if trained[1:]:
        counts = [f"{sum(row['verdict'] == verdict for row in trained)} {against(verdict, baseline)}"
                  for verdict in (BETTER, EVEN, WORSE) if any(row["verdict"] == verdict for row in trained)]
        told.append(f"Of {len(trained)} variants, {', '.join(counts)}.")
    told += [f"Failed: {', '.join(failed)}."] if failed else []
    told += [f"{left} cell{'s have' if left > 1 else ' has'} not been run."] if left else []
    return " ".join(told)


def ranked(rows: list[dict]) -> list[dict]:
    """The rows that were compared, the best first: those that are better, then the others, each by its difference."""
    return sorted((row for row in rows if row["interval"]),
                  key=lambda row: (row["verdict"] != BETTER, -row["difference"]))


def first(trained: list[dict], baseline: str, benchmark: str) -> str:
    """What the best variant did, and whether that is shown; `trained` as `ranked` has them."""
    best = trained[0]
    if best["verdict"] != BETTER:
        return (f"No variant is better than {baseline} on {benchmark}; {best['variant']} comes nearest with "
                f"{points(best)}.")
    return f"{best['variant']} is better than {baseline} on {benchmark}: {points(best)}."


def of_run(name: str, rows: dict[str, dict]) -> str:
    """A run against the student that it started from; `rows` by benchmark."""
    clauses = [f"{against(row['verdict'], 'its start')} on {benchmark}: {points(row)}"
               for benchmark, row in rows.items() if row["interval"]]
    return f"{name} is {'; '.join(clauses)}." if clauses else f"{name}: nothing has been compared with its start yet."


def against(verdict: str, baseline: str) -> str:
    """`better than start`, `not distinguishable from start`."""
    return f"{verdict} {'from' if verdict == EVEN else 'than'} {baseline}"


def points(row: dict) -> str:
    """`+32.0 points [+25.1, +38.9]`: the difference with its interval, in percentage points."""
    low, high = row["interval"]
    return f"{100 * row['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
