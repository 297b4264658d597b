"""What can be said of a single term without models: combinations of its slots that are silently wrong. No torch."""
from collections.abc import Callable, Iterator

from tasks.opd.recipe import slots
from tasks.opd.recipe.requirements import columns_read, compares, completed, needs_teacher, on_tokens_written
from tasks.opd.recipe.schema import Recipe, Term
from tasks.opd.recipe.slots import Problem

FEW = "of candidates; use support: student_top_k, teacher_top_k, union or intersection"
Found = Iterator[Problem]


def divergence_fits(recipe: Recipe, term: Term, key: str) -> Found:
    """A divergence has a support to sum over, and an estimator made for it."""
    if term.divergence is None:
        return
    name, support, estimator = term.divergence.name, term.support.name, term.estimator.name
    takes = slots.constant("estimator", "TAKES", {}).get(estimator)
    if takes in ("advantage", "candidates"):
        way = ", or advantage: teacher_gap in place of the divergence" if compares(term) else ""
        message = f"needs an advantage, but the term has divergence {name}; use estimator: exact{way}"
        yield Problem(f"{key}.estimator", message, estimator)
    elif takes == "target" and (name != "reverse_kl" or support != "sampled" or term.target.name != "teacher"):
        message = f"estimates reverse_kl to target teacher on support sampled, not {name} to {term.target.name} on " \
                  f"{support}; use those, or estimator: exact"
        yield Problem(f"{key}.estimator", message, estimator)
    elif takes == "divergence" and support == "sampled" and compares(term):
        way = ", or estimator: k2 or k3, or advantage: teacher_gap" if name == "reverse_kl" else ""
        yield Problem(f"{key}.support", f"{name} with estimator {estimator} compares distributions, not one token; "
                      f"use support: full, teacher_top_k or student_top_k{way}", support)
    if not compares(term) and support != "sampled":
        yield Problem(f"{key}.support", f"{name} is of the tokens written; use support: sampled", support)


def advantage_fits(recipe: Recipe, term: Term, key: str) -> Found:
    """An advantage is of tokens written, or of candidates on a support, and goes into the policy gradient for it."""
    if term.advantage is None:
        return
    name, candidates = term.advantage.name, "candidates" in columns_read(term)
    fitting = "candidate_policy_gradient" if candidates else "policy_gradient"
    if term.estimator.name != fitting:
        yield Problem(f"{key}.estimator", f"advantage {name} needs estimator: {fitting}", term.estimator.name)
    if candidates == (term.support.name == "sampled"):
        message = "of the tokens written; use support: sampled" if not candidates else FEW
        yield Problem(f"{key}.support", f"advantage {name} is {message}", term.support.name)
    if candidates and term.support.name == "full":
        yield Problem(f"{key}.support", f"advantage {name} is {FEW}; over the whole vocabulary divergence: reverse_kl "
                      "with estimator: exact has the same gradient", "full")


def advantage_sees_token(recipe: Recipe, term: Term, key: str) -> Found:
    """Something in the term depends on the token written: E[A grad log p(y)] = A grad 1 = 0 for a constant A."""
    if term.advantage is None or any(map(recipe.accepts.get, ("constant_advantage", "truncated_sampling"))):
        return
    same = term.advantage.name in slots.constant("advantage", "CONSTANT", frozenset())
    same &= term.rows.name in slots.constant("rows", "UNSELECTIVE", frozenset())
    same &= {weight.name for weight in term.weights} <= slots.constant("weight", "CONSTANT", frozenset())
    foreign = term.rows.name in slots.constant("rows", "ANY_AUTHOR", frozenset()) and \
        {writer.name for writer in recipe.rollout.writers} != {"student"}
    if same and not foreign:
        yield Problem(f"{key}.advantage", "is the same whichever token was written: on the student's own completions "
                      "its gradient is zero in the mean, and noise alone moves the student; use teacher_gap or grpo, "
                      "rows by reward, or say accepts: {constant_advantage: why}", term.advantage.name)


def columns_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """What slots read of the term itself is there: its divergence, its candidates as they are, a whole target."""
    read, unnormalised = columns_read(term), slots.constant("target", "UNNORMALISED", frozenset())
    if "divergence" in read and not (term.divergence and compares(term)):
        yield Problem(f"{key}.weights", "a weight here reads the term's own divergence; give the term one "
                      "(divergence: reverse_kl, support: full) in place of its advantage")
    how = completed(term.support, "support").get("renormalise")
    if "candidates" in read and how not in (None, "none"):
        yield Problem(f"{key}.support.renormalise", "candidates keep their log-probabilities of the full softmax; use "
                      "renormalise: none", how)
    if "reverse_kl" in read and term.advantage and term.target.name in unnormalised:
        yield Problem(f"{key}.target", f"advantage {term.advantage.name} has the reverse KL as its baseline, which "
                      f"target {term.target.name} without its normaliser has not; use advantage: teacher_gap",
                      term.target.name)


def groups_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """What compares the rollouts of a prompt needs at least two of them."""
    chosen = [("advantage", term.advantage), ("rows", term.rows)]
    chosen += [("context", recipe.teacher.context)] if needs_teacher(term) else []
    several = any(writer.n >= 2 for writer in recipe.rollout.writers if writer.name == "student")
    for kind, slot in chosen:
        if slot and slot.name in slots.constant(kind, "GROUPED", frozenset()) and not several:
            yield Problem("rollout.writers", f"{key} has {kind} {slot.name}, which compares the rollouts of a prompt; "
                          "give the writer student n: 2 or more")


def support_is_whole(recipe: Recipe, term: Term, key: str) -> Found:
    """A divergence over part of the vocabulary says what becomes of the rest."""
    how = completed(term.support, "support").get("renormalise")
    if term.divergence is None or not compares(term):
        return
    if how == "none":
        yield Problem(f"{key}.support.renormalise", "a raw top-k divergence pushes the student's mass out of the "
                      "support; use both or tail, or advantage: candidate_gap with estimator: "
                      "candidate_policy_gradient", "none")
    if how == "teacher" and term.divergence.name != "forward_kl":
        yield Problem(f"{key}.support.renormalise", f"only the teacher renormalised is for forward_kl, not "
                      f"{term.divergence.name}; use both or tail", "teacher")


def support_says_something(recipe: Recipe, term: Term, key: str) -> Found:
    """A support of one token is compared with its tail, not with itself."""
    params = completed(term.support, "support")
    if params.get("k") == 1 and params.get("renormalise") == "both":
        yield Problem(f"{key}.support.k", "one token renormalised has probability 1 on both sides: the loss is always "
                      "0; use renormalise: tail, or a larger k", 1)


def clip_has_a_sum(recipe: Recipe, term: Term, key: str) -> Found:
    """What is clipped is a sum over a support."""
    if term.clip.at != "none" and (term.divergence is None or term.support.name == "sampled"):
        yield Problem(f"{key}.clip.at", "cuts a divergence over a support; use a divergence on support full, "
                      "teacher_top_k or student_top_k, or clip.at: none", term.clip.at)


def law_is_whole(recipe: Recipe, term: Term, key: str) -> Found:
    """Terms on the tokens written need the distribution they assume: the one sampled from."""
    writing = any(writer.name == "student" for writer in recipe.rollout.writers)
    if not (writing and on_tokens_written(term)) or recipe.accepts.get("truncated_sampling"):
        return
    sampling, tau = recipe.rollout.sampling, recipe.loss.temperature
    odd = {"rollout.sampling.top_p": (sampling.top_p, sampling.top_p < 1),
           "rollout.sampling.top_k": (sampling.top_k, sampling.top_k > 0),
           "rollout.sampling.temperature": (sampling.temperature, sampling.temperature != tau)}
    for name, (value, bad) in odd.items():
        if bad:
            yield Problem(name, f"{key} learns from tokens written, to be drawn from the student's own distribution: "
                          f"top_p 1, top_k 0, temperature {tau} (loss.temperature); or say "
                          "accepts: {truncated_sampling: why}", value)
    for name in sorted({slot.name for slot in recipe.refine} & slots.constant("refiner", "INTERLEAVED", frozenset())):
        yield Problem(f"{key}.support", f"learns from tokens written, but of the student's own refine {name} keeps "
                      "those that the teacher finds likely; use a divergence with support: full or teacher_top_k, or "
                      "say accepts: {truncated_sampling: why}", "sampled")


def rows_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """Somebody writes the rollouts a term takes."""
    authors = {writer.name for writer in recipe.rollout.writers}
    if term.rows.name not in slots.constant("rows", "ANY_AUTHOR", frozenset()) and "student" not in authors:
        message = f"takes only the student's rollouts, but the writers are {', '.join(sorted(authors))}; use rows: all"
        yield Problem(f"{key}.rows", message, term.rows.name)


TERM_RULES: list[Callable[[Recipe, Term, str], Found]] = [
    divergence_fits, advantage_fits, advantage_sees_token, columns_exist, groups_exist, support_is_whole,
    support_says_something, clip_has_a_sum, law_is_whole, rows_exist]
