"""What a person is told of a refinement that refined nothing."""
import pytest

from tasks.bootstrap import make_models, models_needed
from tasks.opd.recipe import loading
from tasks.prompts import make_prompts
from tasks.refine import refine_rollouts
from tasks.rollout import write_rollouts
from tests.one_round import TINY


@pytest.mark.parametrize("k, says_so", [(679, True), (1, False)])
def test_a_teacher_that_accepts_every_token_is_said_to_redraw_none(pool, capfd, k, says_so):
    recipe = loading.load("skd", [*TINY, f"refine.0.k={k}"])  # 679 tokens: the tiny pair's whole vocabulary
    models = make_models.fn(recipe.pair, models_needed(recipe), pool)
    student = models["student"]
    prompts = make_prompts.fn(recipe.prompts, student, pool, context_tokens=recipe.pair.context_tokens, use="train")
    rollouts = write_rollouts.fn(recipe, models, student, prompts, pool, 0)
    made = refine_rollouts.fn(recipe, models, student, prompts, rollouts, pool, 0)
    assert (made.counts["accepted_share"] == 1.0) is says_so
    assert ("accepted (accepted_share 1.0), so the teacher redrew none" in capfd.readouterr().err) is says_so
