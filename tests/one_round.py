"""One tiny round of recipes through the tasks, in this process and without a server, on models nobody trained.

`python -m tests.one_round VARIANT...` prints a JSON object: variant -> {checkpoint, made, reused}.
"""
import json
import sys

from tasks.bootstrap import make_models, models_needed
from tasks.evaluate import evaluate_student
from tasks.grade import grade_rollouts
from tasks.opd.recipe import loading
from tasks.preflight import preflight
from tasks.prompts import make_prompts
from tasks.refine import refine_rollouts
from tasks.rollout import write_rollouts
from tasks.score import score_rollouts
from tasks.train import train_student
from tasks.workers import pools

OTHERS = ("teacher_start", "expert_four", "expert_five", "random")  # of the tiny pair
TINY = ["workers=inline", "pair.student=random", "rounds=1", "prompts.count=8", "rollout.prompts_per_round=4",
        "rollout.sampling.max_new_tokens=8", "benchmarks.0.count=3", "benchmarks.0.sampling.max_new_tokens=4",
        "pair.teacher={name: random, hidden: 96}",
        *(f"pair.others.{name}={{name: random, draw: {draw}}}" for draw, name in enumerate(OTHERS, 1)),
        "accepts={shift: these models were never trained, identity: likewise}"]


def one_round(recipe, pool) -> dict:
    """Artifacts by stage."""
    models = make_models.fn(recipe.pair, models_needed(recipe), pool)
    student, ask = models["student"], {"context_tokens": recipe.pair.context_tokens}
    prompts = make_prompts.fn(recipe.prompts, student, pool, **ask, use="train")
    held_out = {b.name: make_prompts.fn(b, student, pool, **ask, use="test", train=prompts) for b in recipe.benchmarks}
    preflight.fn(recipe, models, prompts, pool)
    rollouts = write_rollouts.fn(recipe, models, student, prompts, pool, 0)
    rollouts = grade_rollouts.fn(recipe, prompts, rollouts, pool, 0)
    if recipe.refine:
        rollouts = refine_rollouts.fn(recipe, models, student, prompts, rollouts, pool, 0)
        rollouts = grade_rollouts.fn(recipe, prompts, rollouts, pool, 0)
    scores = score_rollouts.fn(recipe, models, student, prompts, rollouts, pool, 0)
    student = train_student.fn(recipe, models, student, rollouts, scores, pool, 0)
    evaluate_student.fn(recipe, student, held_out, pool, when="final", teacher=models.get("teacher"), step=1)
    return {"rollouts": rollouts, "checkpoint": student}


if __name__ == "__main__":
    told = {}
    for variant in sys.argv[1:]:
        tiny_recipe = loading.load(variant, TINY)
        with pools.for_run(tiny_recipe) as the_pool:
            checkpoint = one_round(tiny_recipe, the_pool)["checkpoint"]
            told[variant] = {"checkpoint": checkpoint.fingerprint, "made": the_pool.made, "reused": the_pool.reused}
    print(json.dumps(told))
