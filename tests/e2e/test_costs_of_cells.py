"""What whole recipes cost, on random tiny models: every token is found again in the artifacts' files.

Two rounds through the tasks, in this process. A reader's numbers are counted from the Parquet files of each stage, not
from what the stages say of themselves.
"""
from collections import Counter
from types import SimpleNamespace

import pytest

from tasks.bootstrap import make_models, models_needed
from tasks.grade import grade_rollouts
from tasks.opd.core.costs import READ, TRAINED, WRITTEN
from tasks.opd.core.records import DATASET, STUDENT, TEACHER, Rollout, read_rows
from tasks.opd.evaluation.cell_costs import costs_of
from tasks.opd.recipe import loading
from tasks.prompts import make_prompts
from tasks.refine import refine_rollouts
from tasks.rollout import write_rollouts
from tasks.score import score_rollouts
from tasks.train import train_student
from tasks.workers import pools

TINY = ["workers=inline", "pair.student=random", "pair.teacher.name=random", "pair.teacher.hidden=96", "rounds=2",
        "prompts.count=64", "rollout.prompts_per_round=8", "rollout.sampling.max_new_tokens=16", "benchmarks=[]"]


def run(variant: str, *overrides: str) -> SimpleNamespace:
    """A variant's costs, and the tokens by author of rollouts as written, as refined and as scored, over two rounds."""
    recipe = loading.load(variant, [*TINY, *overrides])
    raw, refined, scored = Counter(), Counter(), Counter()
    with pools.for_run(recipe) as pool:
        models = make_models.fn(recipe.pair, models_needed(recipe), pool)
        student, ask = models["student"], {"context_tokens": recipe.pair.context_tokens}
        prompts = make_prompts.fn(recipe.prompts, student, pool, **ask, use="train")
        for r in range(recipe.rounds):
            rollouts = write_rollouts.fn(recipe, models, student, prompts, pool, r)
            raw += authors(rollouts)
            rollouts = grade_rollouts.fn(recipe, prompts, rollouts, pool, r)
            if recipe.refine:
                rollouts = refine_rollouts.fn(recipe, models, student, prompts, rollouts, pool, r)
                refined += authors(rollouts)
                rollouts = grade_rollouts.fn(recipe, prompts, rollouts, pool, r)
            scored += authors(rollouts)
            scores = score_rollouts.fn(recipe, models, student, prompts, rollouts, pool, r)
            student = train_student.fn(recipe, models, student, rollouts, scores, pool, r)
    return SimpleNamespace(costs=costs_of(student, []).tokens, raw=raw, refined=refined, scored=scored,
                           num_teachers=len(scores))


def authors(artifact) -> Counter:
    """Tokens of an artifact's rollouts by author."""
    return Counter(who for row in read_rows(artifact.path / "rollouts.parquet", Rollout) for who in row.author)


def written(costs: dict) -> Counter:
    """Written tokens by author, zeros left out."""
    return +Counter({who: costs[name] for who, name in WRITTEN.items()})


@pytest.mark.parametrize("variant", ["sft", "seqkd"])
def test_text_of_the_teacher_is_the_teachers_writing(variant):
    found = run(variant)
    assert written(found.costs) == found.raw and found.raw[TEACHER] == found.raw.total() > 16
    assert found.costs[READ] == 0 and found.costs[TRAINED] == found.raw.total()  # nobody scores what is copied


def test_gkd_has_two_authors_and_what_its_teacher_reads_is_all_of_it():
    found = run("gkd")
    assert written(found.costs) == found.raw and found.raw[STUDENT] > 0 < found.raw[DATASET]
    assert found.costs[READ] == found.costs[TRAINED] == found.raw.total()


def test_what_a_filter_drops_was_written_but_not_read():
    found = run("gkd", "rollout.filters=[{name: too_long, tokens: 20}]")
    assert 0 < found.scored.total() < found.raw.total()             # solutions are longer
    assert written(found.costs) == found.raw and found.costs[READ] == found.costs[TRAINED] == found.scored.total()


def test_two_models_that_score_read_twice():
    found = run("gopd")
    assert found.num_teachers == 2 and found.costs[READ] == 2 * found.raw.total()


@pytest.mark.parametrize("variant, overrides", [("skd", []), ("relay_opd", ["refine.0.span=4"])])
def test_a_student_and_a_teacher_in_turns_pay_for_originals_drafts_and_verification(variant, overrides):
    found = run(variant, *overrides)
    assert found.costs[WRITTEN[TEACHER]] == found.refined[TEACHER] > 0
    drafted = found.costs[WRITTEN[STUDENT]] - found.raw.total()       # after the first rejections
    verified = found.costs[READ] - found.refined.total()              # all that is refined is scored afterwards
    assert drafted > 0 and 0 < verified <= found.raw.total() + drafted
    assert found.costs[TRAINED] == found.refined.total()


def test_skd_with_drafts_of_one_token_and_no_token_accepted():
    """The teacher writes all; all but the first of a rollout's tokens replace one that the student drafted."""
    found = run("skd", "refine.0.k=0", "refine.0.draft_tokens=1", "rollout.sampling.max_new_tokens=4")
    lengths = found.refined[TEACHER]                                  # each of at most 4: one window reads them all
    assert found.refined.total() == lengths == found.costs[WRITTEN[TEACHER]]
    drafted = lengths - 2 * 8                                         # of 2 rounds with 8 rollouts
    assert found.costs[WRITTEN[STUDENT]] == found.raw.total() + drafted
    assert found.costs[READ] == found.raw.total() + drafted + lengths


def test_trd_pays_for_the_originals_that_are_thrown_away_and_for_showing_them():
    found = run("trd")
    assert found.costs[WRITTEN[STUDENT]] == found.raw.total() > 0 == found.refined[STUDENT]
    assert found.costs[WRITTEN[TEACHER]] == found.refined.total()
    # shown once; original and rewrite scored for the gap that is reported; the rewrite scored to learn from
    assert found.costs[READ] == found.raw.total() + (found.raw + found.refined).total() + found.refined.total()


def test_trd_pays_for_rewrites_that_it_does_not_keep():
    found = run("trd_failures")                                       # random models repair nothing
    assert found.refined == found.raw and found.costs[WRITTEN[TEACHER]] > 0 == found.refined[TEACHER]
