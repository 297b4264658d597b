"""What can be said of a single term without models: combinations of its slots that are silently wrong. No torch."""
from collections.abc import Callable, Iterator

from tasks.opd.recipe import slots
from tasks.opd.recipe.requirements import (
    columns_read,
    compares,
    completed,
    needs_teacher,
    on_tokens_written,
    writers_of,
)
from tasks.opd.recipe.schema import Recipe, Slot, Term
from tasks.opd.recipe.slots import Problem

FEW = "of candidates; use support: student_top_k, teacher_top_k, union or intersection"
Found = Iterator[Problem]


def divergence_fits(recipe: Recipe, term: Term, key: str) -> Found:
    """A divergence has a support to sum over, and an estimator made for it."""
    if term.divergence is None:
        return
    name, support, estimator = term.divergence.name, term.support.name, term.estimator.name
    written, takes = is_written(term), slots.entry_of(term.estimator, "estimator").takes
    if takes in ("advantage", "candidates"):
        way = ", or advantage: teacher_gap in place of the divergence" if compares(term) else ""
        message = f"needs an advantage, but the term has divergence {name}; use estimator: exact{way}"
        yield Problem(f"{key}.estimator", message, estimator)
    elif takes == "target" and not (written and estimates(estimator, term)):
        divergence, target = slots.entry_of(term.estimator, "estimator").estimates
        message = f"estimates {divergence} to target {target} on support sampled, not {name} to {term.target.name} " \
                  f"on {support}; use those, or estimator: exact"
        yield Problem(f"{key}.estimator", message, estimator)
    elif takes == "divergence" and written and compares(term):
        fitting = " or ".join(other for other in slots.names("estimator") if estimates(other, term))
        way = f", or estimator: {fitting}, or advantage: teacher_gap" if fitting else ""
        yield Problem(f"{key}.support", f"{name} with estimator {estimator} compares distributions, not one token; "
                      f"use support: full, teacher_top_k or student_top_k{way}", support)
    if not compares(term) and not written:
        yield Problem(f"{key}.support", f"{name} is of the tokens written; use support: sampled", support)


def advantage_fits(recipe: Recipe, term: Term, key: str) -> Found:
    """An advantage is of tokens written, or of candidates on a support, and goes into the policy gradient for it."""
    if term.advantage is None:
        return
    name, candidates = term.advantage.name, "candidates" in columns_read(term)
    takes = "candidates" if candidates else "advantage"
    if slots.entry_of(term.estimator, "estimator").takes != takes:
        fitting = [n for n in slots.names("estimator") if slots.entry_of(Slot(name=n), "estimator").takes == takes]
        yield Problem(f"{key}.estimator", f"advantage {name} needs estimator: {' or '.join(fitting)}",
                      term.estimator.name)
    if candidates == is_written(term):
        message = "of the tokens written; use support: sampled" if not candidates else FEW
        yield Problem(f"{key}.support", f"advantage {name} is {message}", term.support.name)
    if candidates and slots.entry_of(term.support, "support").covers == "full":
        yield Problem(f"{key}.support", f"advantage {name} is {FEW}; over the whole vocabulary divergence: reverse_kl "
                      "with estimator: exact has the same gradient", term.support.name)


def is_written(term: Term) -> bool:
    """Whether the term's support is the token written."""
    return slots.entry_of(term.support, "support").covers == "written"


def estimates(estimator: str, term: Term) -> bool:
    """Whether an estimator on the tokens written, by its name, is of the term's divergence to its target."""
    of = slots.entry_of(Slot(name=estimator), "estimator").estimates
    return of == (term.divergence.name, term.target.name)


def advantage_sees_token(recipe: Recipe, term: Term, key: str) -> Found:
    """Something in the term depends on the token written: E[A grad log p(y)] = A grad 1 = 0 for a constant A."""
    if term.advantage is None or any(map(recipe.accepts.get, ("constant_advantage", "truncated_sampling"))):
        return
    rows = slots.entry_of(term.rows, "rows")
    entries = [slots.entry_of(term.advantage, "advantage"), rows, *(slots.entry_of(w, "weight") for w in term.weights)]
    same = all(entry.ignores_token for entry in entries)
    foreign = rows.any_author and any(writer.authors != ("student",) for writer in writers_of(recipe))
    if same and not foreign:
        yield Problem(f"{key}.advantage", "is the same whichever token was written: on the student's own completions "
                      "its gradient is zero in the mean, and noise alone moves the student; use teacher_gap or grpo, "
                      "rows by reward, or say accepts: {constant_advantage: why}", term.advantage.name)


def columns_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """What slots read of the term itself is there: its divergence, its candidates as they are, a whole target."""
    read = columns_read(term)
    if "divergence" in read and not (term.divergence and compares(term)):
        yield Problem(f"{key}.weights", "a weight here reads the term's own divergence; give the term one "
                      "(divergence: reverse_kl, support: full) in place of its advantage")
    how = completed(term.support, "support").get("renormalise")
    if "candidates" in read and how not in (None, "none"):
        yield Problem(f"{key}.support.renormalise", "candidates keep their log-probabilities of the full softmax; use "
                      "renormalise: none", how)
    if "reverse_kl" in read and term.advantage and slots.entry_of(term.target, "target").unnormalised:
        yield Problem(f"{key}.target", f"advantage {term.advantage.name} has the reverse KL as its baseline, which "
                      f"target {term.target.name} without its normaliser has not; use advantage: teacher_gap",
                      term.target.name)


def groups_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """What compares the rollouts of a prompt needs at least two of them."""
    chosen = [("advantage", term.advantage), ("rows", term.rows)]
    chosen += [("context", recipe.teacher.context)] if needs_teacher(term) else []
    several = any(writer.n >= 2 for writer, entry in zip(recipe.rollout.writers, writers_of(recipe)) if entry.on_policy)
    for kind, slot in chosen:
        if slot and slots.entry_of(slot, kind).grouped and not several:
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
    if how == "teacher" and not slots.entry_of(term.divergence, "divergence").one_sided:
        fitting = [n for n in slots.names("divergence") if slots.entry_of(Slot(name=n), "divergence").one_sided]
        yield Problem(f"{key}.support.renormalise", f"only the teacher renormalised is for {' or '.join(fitting)}, not "
                      f"{term.divergence.name}; use both or tail", "teacher")


def support_says_something(recipe: Recipe, term: Term, key: str) -> Found:
    """A support of one token is compared with its tail, not with itself."""
    params = completed(term.support, "support")
    if params.get("k") == 1 and params.get("renormalise") == "both":
        yield Problem(f"{key}.support.k", "one token renormalised has probability 1 on both sides: the loss is always "
                      "0; use renormalise: tail, or a larger k", 1)


def clip_has_a_sum(recipe: Recipe, term: Term, key: str) -> Found:
    """What is clipped is a sum over a support."""
    if term.clip.at != "none" and (term.divergence is None or is_written(term)):
        yield Problem(f"{key}.clip.at", "cuts a divergence over a support; use a divergence on support full, "
                      "teacher_top_k or student_top_k, or clip.at: none", term.clip.at)


def law_is_whole(recipe: Recipe, term: Term, key: str) -> Found:
    """Terms on the tokens written need the distribution they assume: the one sampled from."""
    writing = any(writer.on_policy for writer in writers_of(recipe))
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
    for name in sorted({slot.name for slot in recipe.refine if slots.entry_of(slot, "refiner").interleaved}):
        yield Problem(f"{key}.support", f"learns from tokens written, but of the student's own refine {name} keeps "
                      "those that the teacher finds likely; use a divergence with support: full or teacher_top_k, or "
                      "say accepts: {truncated_sampling: why}", "sampled")


def rows_exist(recipe: Recipe, term: Term, key: str) -> Found:
    """Somebody writes the rollouts a term takes."""
    by_student = any("student" in writer.authors for writer in writers_of(recipe))
    if not slots.entry_of(term.rows, "rows").any_author and not by_student:
        names = ", ".join(sorted({writer.name for writer in recipe.rollout.writers}))
        message = f"takes only the student's rollouts, but the writers are {names}; use rows: all"
        yield Problem(f"{key}.rows", message, term.rows.name)


TERM_RULES: list[Callable[[Recipe, Term, str], Found]] = [
    divergence_fits, advantage_fits, advantage_sees_token, columns_exist, groups_exist, support_is_whole,
    support_says_something, clip_has_a_sum, law_is_whole, rows_exist]
