"""What a run's numbers say is going wrong, while it runs: rules over the records of its rounds. Plain data; no torch.

A rule is `rule(recipe, history) -> sentence | None`; `history` holds the records of the finished rounds
(`tasks.history.round_record`), the first first. The sentence has the number and what to change. Each rule is found once
a run, in the round that first breaks it; nothing is stopped. Numbers are those of `training.diagnostics`, and a rule
whose numbers were not measured finds nothing.
Source of rules 1 to 6 and their limits: arXiv:2604.08527 (loops), 2604.13016 (overlap), TT-OPD (average), 2603.25562
(concentrated). How much loops must have risen is ours.
"""
import statistics
from dataclasses import dataclass

from tasks.opd.recipe import requirements, slots
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact

Record = dict
RISE = 0.1                              # by which both shares must exceed the median of the rounds before
LEAST_OVERLAP = 0.5                     # of the 16 likeliest tokens, in the first round
MOST_APART = 0.7                        # nats, of a self-teacher that is an average
HALVED_WITHIN = 20                      # optimizer steps
MOST_CONCENTRATED = 0.5                 # of sum |gap|, by 1 % of the tokens
MOST_MISMATCH = 0.01                    # nats, KL(sampler || trainer)
MOST_LEAKED = 0.01                      # of the answers, above the start's


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A rule that was broken, and when."""
    rule: str
    rounds: int                         # finished by then
    text: str


def metric(record: Record, name: str) -> float | None:
    """A metric's mean over a round; None where it was not measured."""
    return record["metrics"].get(name)


def loops(recipe: Recipe, history: list[Record]) -> str | None:
    """The shares of cut off and of repeating rollouts have both risen."""
    cut, before = risen(history, "rollout/truncated_share")
    for name, of in (("trust/zlib_share", "of the rollouts are loops"),
                     ("trust/trigram_repetition", "of their 3-grams are repeated")):
        repeated, earlier = risen(history, name)
        if cut is not None and repeated is not None:
            return (f"{cut:.0%} of the rollouts are cut off ({before:.0%} before) and {repeated:.0%} {of} "
                    f"({earlier:.0%} before): loops are being rewarded. Go back to the rounds before, and mix in "
                    "written solutions (writer dataset with a term nll on its rows) or a term towards `start`")
    return None


def risen(history: list[Record], name: str) -> tuple[float | None, float]:
    """A metric's last value and the median of those before, where it exceeds that by RISE; (None, 0) otherwise."""
    *before, last = (metric(record, name) for record in history)
    known = [value for value in before if value is not None]
    if last is None or not known or last < (median := statistics.median(known)) + RISE:
        return None, 0.0
    return last, median


def strangers(recipe: Recipe, history: list[Record]) -> str | None:
    """At the start student and teacher have other tokens in mind."""
    overlap = metric(history[0], "trust/overlap_at_16")
    if overlap is None or overlap >= LEAST_OVERLAP:
        return None
    return (f"only {overlap:.0%} of the student's 16 likeliest tokens were among the teacher's in the first round "
            f"(limit {LEAST_OVERLAP:.0%}): what they write is too different to be taught token by token. Train on the "
            "teacher's own writing first (variant seqkd), or take a teacher closer to the student")


def drifting_average(recipe: Recipe, history: list[Record]) -> str | None:
    """A self-teacher that is a moving average is far from its student."""
    if recipe.teacher.model != "self" or not slots.entry_of(recipe.teacher.refresh, "refresh").averages:
        return None
    apart = metric(history[-1], "trust/reverse_kl_nats")
    gap = metric(history[-1], "trust/teacher_gap_mean_nats")
    apart = apart if apart is not None else -gap if gap is not None else None
    if apart is None or apart <= MOST_APART:
        return None
    return (f"the student is {apart:.2f} nats a token from its own moving average (limit {MOST_APART:g}), whose errors "
            "it then learns. Set teacher.refresh: frozen, or lower train.learning_rate")


def collapsing(recipe: Recipe, history: list[Record]) -> str | None:
    """The student's entropy has halved within a few optimizer steps."""
    known = [(record["counts"].get("step", record["round"]), value) for record in history
             if (value := metric(record, "trust/student_entropy_nats")) is not None]
    if not known:
        return None
    step, now = known[-1]
    since = [(step - at, value) for at, value in known if 0 < step - at < HALVED_WITHIN and value >= 2 * now]
    if not since:
        return None
    steps, before = since[-1]
    return (f"the student's entropy fell from {before:.2f} to {now:.2f} nats within {steps} optimizer steps: it stops "
            "exploring. Lower train.learning_rate, or take a divergence that covers the teacher (forward_kl, jsd)")


def concentrated(recipe: Recipe, history: list[Record]) -> str | None:
    """A few tokens decide the gradient."""
    share = metric(history[-1], "trust/teacher_gap_top1_share")
    if share is None or share <= MOST_CONCENTRATED:
        return None
    return (f"1 % of the tokens hold {share:.0%} of the teacher's gaps (limit {MOST_CONCENTRATED:.0%}): these decide "
            "the gradient. Use advantage floored_gap or a clip, and look whether they are special tokens "
            "(weight special_token_mask)")


def mismatch(recipe: Recipe, history: list[Record]) -> str | None:
    """The engine that samples computes another distribution than the trainer."""
    apart, sampling = metric(history[-1], "trust/sampler_kl_nats"), recipe.rollout.sampling
    whole = sampling.temperature == recipe.loss.temperature and sampling.top_p == 1 and sampling.top_k == 0
    alone = all(writer.on_policy and not writer.asks_teacher for writer in requirements.writers_of(recipe))
    if apart is None or apart <= MOST_MISMATCH or not (whole and alone):
        return None
    return (f"the sampler's and the trainer's log-probabilities of the same tokens differ by {apart:.3f} nats "
            f"(limit {MOST_MISMATCH:g}). Set engine.dtype: float32, or weigh by sampler_ratio")


RULES = {"loops": loops, "strangers": strangers, "drifting_average": drifting_average, "collapsing": collapsing,
         "concentrated": concentrated, "mismatch": mismatch}


def is_privileged(recipe: Recipe) -> bool:
    """Whether a teacher sees more than the student, at some time of the run."""
    return any(not slots.entry_of(now.teacher.context, "context").own_prompt
               or any(refiner.shows_solution for refiner in requirements.refiners_of(now))
               for now in recipe.versions())


def leaks(recipe: Recipe, rounds: int, start: dict[str, Artifact], end: dict[str, Artifact]) -> list[Finding]:
    """Benchmarks on which more answers than at the start speak of what only the teacher saw; reports by benchmark."""
    found = []
    for name, report in end.items() if is_privileged(recipe) else ():
        before, after = (artifact.counts["leakage_share"] for artifact in (start[name], report))
        if after > before + MOST_LEAKED:
            found.append(Finding(rule="leakage", rounds=rounds, text=(
                f"{after:.1%} of the answers to {name} speak of a solution, an example or feedback that only the "
                f"teacher saw ({before:.1%} at the start). Leave such tokens out (a weight), show the teacher less "
                "(teacher.context), or mix in a term under the student's own prompt")))
    return found


def new_findings(recipe: Recipe, history: list[Record], known: list[Finding]) -> list[Finding]:
    """What the rules find after the last round of `history`, but for rules that have found something before."""
    told = {finding.rule for finding in known}
    return [Finding(rule=name, rounds=len(history), text=text) for name, rule in RULES.items()
            if name not in told and (text := rule(recipe, history))]


def to_markdown(findings: list[Finding]) -> str:
    """A list with the round of each; empty without any."""
    if not findings:
        return ""
    lines = [f"- round {finding.rounds}, `{finding.rule}`: {finding.text}." for finding in findings]
    return "\n".join(["### Findings", "", *lines])
