"""What a finished run reached and what it cost, under at most a dozen names that are the same for every variant.

No torch. Rewards and shares are those of the recipe's first benchmark, differences are to the student it started from.
"""
import statistics

from tasks.opd.core.costs import READ, TRAINED, WRITTEN
from tasks.opd.core.records import STUDENT, TEACHER
from tasks.opd.evaluation import cell_costs
from tasks.opd.evaluation.reports import divergence_of
from tasks.opd.store.artifacts import Artifact

PREFIX = "final/"
REACHED = ("reward_mean", "reward_difference", "others_difference", "reverse_kl_mean_nats", "truncated_share")
SPENT = ("rounds", TRAINED, WRITTEN[STUDENT], WRITTEN[TEACHER], READ, "seconds")
NAMES = tuple(f"{PREFIX}{name}" for name in (*REACHED, *SPENT))


def final_numbers(result: dict, num_rounds: int) -> dict[str, float]:
    """The numbers of a run by name, one of NAMES each, in their order; what is not known is left out.

    `result` is what `flows.distill` returns. `reward_mean` and `reward_difference` are shares of 1, of the end and over
    the start; `others_difference` is the mean of such differences over the other benchmarks. Tokens and seconds are
    those of all rounds, as in the table of costs: evaluation is not among them.
    """
    costs = cell_costs.costs_of(result["checkpoint"], result["evaluation"])
    known = {**reached(result["start"], result["end"]), "rounds": num_rounds, **costs.tokens,
             "seconds": cell_costs.total(costs.seconds, cell_costs.ROUND)}
    return {f"{PREFIX}{name}": known[name] for name in (*REACHED, *SPENT) if known.get(name) is not None}


def reached(start: dict[str, Artifact], end: dict[str, Artifact]) -> dict[str, float | None]:
    """The numbers of REACHED, None where not known, of reports by benchmark; nothing without a benchmark."""
    if not end:
        return {}
    gained = {name: report.counts["avg"] - start[name].counts["avg"] for name, report in end.items()}
    first, *others = gained
    return {"reward_mean": end[first].counts["avg"], "reward_difference": gained[first],
            "others_difference": statistics.fmean(gained[name] for name in others) if others else None,
            "reverse_kl_mean_nats": divergence_of(end[first]), "truncated_share": end[first].counts["truncated_share"]}
