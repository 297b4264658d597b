"""A recipe with prompts of two sources: one term is taught by the teacher, the other continues plain text."""
import dataclasses

import pytest
import torch

from tasks.bootstrap import make_models, models_needed
from tasks.grade import grade_rollouts
from tasks.opd.core.records import DATASET, STUDENT, Rollout, read_rows
from tasks.opd.objective.columns import columns_of
from tasks.opd.objective.terms import bind_terms, taking_part
from tasks.opd.recipe import loading, requirements
from tasks.prompts import join_prompts, make_prompts
from tasks.rollout import write_rollouts
from tasks.score import score_rollouts
from tasks.train import train_student
from tasks.workers import pools
from tests.one_round import TINY

TAUGHT = "{domains: [sums], support: full, divergence: reverse_kl, estimator: exact}"
CONTINUED = "{domains: [text], rows: all, divergence: nll, coefficient: 0.5}"
WRITERS = "[{name: student, domains: [sums]}, {name: dataset, domains: [text]}]"


def recipe_with(path, terms: str):
    notes = f"{{name: notes, source: {{name: text, path: {path}, opening_characters: 12}}, count: 3, per_round: 2, " \
            "domain: text, max_prompt_tokens: 64}"
    return loading.load("opd_reverse_kl", [*TINY, "prompts.domain=sums", f"extra_prompts=[{notes}]", f"terms={terms}",
                                           f"rollout.writers={WRITERS}"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The round's artifacts under both terms: (recipe, graded, its rows, scores, checkpoint)."""
    home = tmp_path_factory.mktemp("home")
    path, patch = home / "notes.jsonl", pytest.MonkeyPatch()
    path.write_text("".join(f'{{"text": "tom has {i} apples and tom buys {i} more apples"}}\n' for i in range(3)))
    patch.setenv("OPD_HOME", str(home))
    recipe = recipe_with(path, f"[{TAUGHT}, {CONTINUED}]")
    with pools.for_run(recipe) as pool:
        models = make_models.fn(recipe.pair, models_needed(recipe), pool)
        student, context = models["student"], recipe.pair.context_tokens
        parts = {source.name: make_prompts.fn(source, student, pool, context_tokens=context, use="train")
                 for source in recipe.training_sources().values()}
        prompts = join_prompts.fn(parts, pool)
        rollouts = write_rollouts.fn(recipe, models, student, prompts, pool, 0)
        graded = grade_rollouts.fn(recipe, prompts, rollouts, pool, 0)
        scores = score_rollouts.fn(recipe, models, student, prompts, graded, pool, 0)
        rows = read_rows(graded.path / "rollouts.parquet", Rollout)
        yield recipe, graded, rows, scores, train_student.fn(recipe, models, student, graded, scores, pool, 0)
    patch.undo()


def test_the_student_writes_for_the_one_domain_and_the_dataset_for_the_other(trained):
    _, graded, rows, *_ = trained
    assert sorted((r.domain, r.origin) for r in rows) == [("sums", "student")] * 4 + [("text", "dataset")] * 2
    assert {r.domain: r.reward is None for r in rows} == {"sums": False, "text": True}
    assert graded.counts["reward_mean"] == 0.0  # over the four that have a reward


def test_the_teacher_reads_only_what_it_teaches(trained):
    recipe, _, _, scores, _ = trained
    assert requirements.domains_of(recipe, "teacher") == ["sums"]
    assert scores["teacher"].counts["scored"] == 4


def test_each_term_learns_from_its_domain_alone(trained):
    recipe, _, rows, _, checkpoint = trained
    columns = columns_of(rows)
    columns = dataclasses.replace(columns, has_signal=torch.tensor([r.domain == "sums" for r in rows]))
    taught, continued = (taking_part(term, columns) for term in bind_terms(requirements.terms_of(recipe)))
    assert torch.equal(taught, columns.author == STUDENT) and torch.equal(continued, columns.author == DATASET)
    assert checkpoint.counts["trained_tokens"] == columns.num_tokens


def test_an_expert_outside_a_terms_domains_takes_no_part():
    data = ["teacher.model=routed", "pair.experts={sums: teacher, words: expert_four}",
            "pair.others={expert_four: random}"]
    recipe = loading.load("opd_reverse_kl", [*TINY[:-1], *data, f"terms=[{TAUGHT}]"])
    assert [(part["domain"], part["models"]) for part in requirements.terms_of(recipe)] == [
        ("sums", {"teacher": "teacher"})]
