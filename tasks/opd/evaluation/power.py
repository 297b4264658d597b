"""What a suite can detect, said before it runs, and refused where that is more than its author looks for. No torch.

Rewards are 0 or 1. Two students' answers to a prompt have the variance v = accuracy (1 - accuracy) / samples each and
correlate by `correlation`, so their difference has 2 v (1 - correlation): one half is taken to be the prompt's own,
the same for every seed, the other half to be drawn anew. Prompts are taken to be no kin of each other.
"""
import math

from tasks.opd.core.errors import RecipeError
from tasks.opd.evaluation.comparison import START
from tasks.opd.evaluation.statistics import ALPHA, MIN_SEEDS, POWER, detectable
from tasks.opd.recipe.questions import Benchmark
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.suite import Suite

Cells = list[tuple[str, int, Recipe]]


def detectable_by(plan: Suite, benchmark: Benchmark) -> float:
    """The smallest difference to the baseline that the suite tells from 0 with probability POWER.

    `start` is one student, so its seeds add nothing; a trained baseline's do. All rows but the baseline's are compared.
    """
    half = plan.assume.accuracy * (1 - plan.assume.accuracy) / benchmark.samples * (1 - plan.assume.correlation)
    sides = 1 if plan.baseline == START else 2
    return detectable(num_seeds=len(set(plan.seeds)), num_prompts=benchmark.count, comparisons=len(plan.variants),
                      seed_sd=plan.assume.seed_sd * math.sqrt(sides), prompt_sd=math.sqrt(half),
                      rest_sd=math.sqrt(half))


def benchmark_of(plan: Suite, cells: Cells) -> Benchmark:
    """The benchmark that the suite is compared on."""
    asked = cells[0][2].benchmarks
    return next((benchmark for benchmark in asked if benchmark.name == plan.benchmark), asked[0])


def described(plan: Suite, cells: Cells) -> str:
    """What the suite can detect, as a sentence, with what that assumes."""
    benchmark, count, told = benchmark_of(plan, cells), len(set(plan.seeds)), plan.assume
    seeds = f"{100 * told.seed_sd:g} points between seeds"
    if count < MIN_SEEDS:
        seeds = f"nothing of seeds (seed variance not estimable with fewer than {MIN_SEEDS})"
    over = f" by Holm over {len(plan.variants)} comparisons" if plan.variants[1:] else ""
    return (f"{plan.name}: {count} seed{'s' if count > 1 else ''} x {benchmark.count} prompts can detect a difference "
            f"of {100 * detectable_by(plan, benchmark):.1f} points to {plan.baseline} (power {POWER:.0%}, "
            f"{ALPHA:.0%}{over}); assumed: {told.accuracy:.0%} right, correlation {told.correlation:g} between "
            f"two students' answers, {seeds}")


def refuse_undetectable(plan: Suite, cells: Cells) -> None:
    """Raise RecipeError where the suite cannot detect what it looks for."""
    if plan.detect and detectable_by(plan, benchmark_of(plan, cells)) > plan.detect:
        raise RecipeError(f"{described(plan, cells)}. The suite looks for {100 * plan.detect:g} points (detect): give "
                          "it more seeds or prompts, or fewer variants, or measured assumptions (assume); --anyway, or "
                          "detect=0, runs it as it is")
