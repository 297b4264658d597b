"""An entry of a slot's table: a function, and what is known of it before it is run.

A table is `{"jsd": Entry(jsd), "nll": Entry(nll, without_teacher=True)}`. `recipe.slots` reads tables with `ast`, so a
fact is a literal, or a lambda over the entry's complete parameters where it depends on them: `needs=lambda params:
("teacher",) if params["model"] == "teacher" else ("old_logprobs",)`. What is known of an entry stands here and nowhere
else, and nobody asks for an entry by its name.
"""
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A function of a slot and its facts; it is called as the function is. A fact holds for the kinds it names."""
    function: Callable
    _: KW_ONLY
    needs: tuple[str, ...] = ()           # rows, weights, advantages, estimators: the columns that it reads
    grouped: bool = False                 # rows, advantages, contexts: it compares the rollouts of a prompt
    any_author: bool = False              # rows: tokens count whoever wrote them, not only the student's
    ignores_token: bool = False           # rows, weights, advantages: the same whichever token was written
    disjoint: tuple[str, ...] = ()        # rows: those that share no rollout with these
    constant: bool = False                # weights: the same for all tokens, so that there is nothing to report
    masks_special: bool = False           # weights: 0 at special tokens
    without_teacher: bool = False         # targets, divergences: it does not look at the recipe's teacher
    models: tuple[str, ...] = ()          # targets: further models that it looks at
    unnormalised: bool = False            # targets: it lacks its normaliser
    sees_student: bool = False            # targets: it depends on the student as it is now
    covers: str = "part"                  # supports: `part` of the vocabulary, all of it (`full`), the token `written`
    signal: dict[str, Any] | None = None  # supports: what it takes of each model's signal, {column: True or k}
    owns_ids: bool = False                # supports: its ids are the first of the teacher's own top-k
    one_sided: bool = False               # divergences: sound with only the teacher renormalised on the support
    takes: str = ""                       # estimators: divergence, target, advantage or candidates
    old_share: float = 1.0                # estimators: ratios are to old^old_share * target^(1 - old_share)
    estimates: tuple[str, ...] = ()       # estimators on the token written: (divergence, target) that it estimates
    authors: tuple[str, ...] = ()         # writers, refiners: who writes the tokens that are new: student, teacher, ..
    on_policy: bool = False               # writers: it writes with the student as the round begins
    asks_teacher: bool = False            # writers, refiners: it asks the teacher
    interleaved: bool = False             # refiners: student and teacher take turns; likely tokens of the student stay
    reads_rewards: bool = False           # refiners: it reads the rewards of what it is given
    drops_student: bool = False           # refiners: of what the student wrote it leaves nothing
    shows_solution: bool = False          # writers, refiners, contexts: it copies or shows the worked solution
    system: bool = False                  # contexts: it adds a system message, which templates must show
    own_prompt: bool = False              # contexts: the teacher sees what the student saw; nothing is rendered
    moves: bool = False                   # refreshes: the self-teacher changes between rounds
    averages: bool = False                # refreshes: the trainer keeps a moving average of the student
    remote: bool = False                  # makers: a server has the weights; sources: a hub has the items
    spelling: dict[str, str] | None = None  # makers: patterns that parameters which may hold a secret must match
    solved: bool = True                   # sources: its items carry worked solutions
    identity: tuple[str, ...] | None = None  # sources: parameters that say which items these are; None: all of them
    seed_shifts: bool = False             # sources: item i of seed s is item i + s of seed 0

    def __call__(self, *args, **params) -> Any:
        """What the function returns."""
        return self.function(*args, **params)

    def at(self, params: dict[str, Any]) -> "Entry":
        """The entry under its complete parameters: facts that depend on them are values."""
        facts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "function"}
        return replace(self, **{name: fact(params) for name, fact in facts.items() if callable(fact)})
