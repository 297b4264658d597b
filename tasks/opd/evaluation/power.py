"""What a suite can detect, said before it runs, and refused where that is more than its author looks for. No torch.

Rewards are 0 or 1. Two students' answers to a prompt have the variance v = accuracy (1 - accuracy) each and correlate
by `correlation`, so their difference has 2 v (1 - correlation): one half is taken to be the prompt's own, the same for
every seed and sample, the other half to be drawn anew with each sample. Prompts are taken to be no kin of each other.
"""
import math

from tasks.opd.core.errors import RecipeError
from tasks.opd.evaluation.comparison import START
from tasks.opd.evaluation.statistics import ALPHA, MIN_SEEDS, POWER, detectable
from tasks.opd.recipe.questions import Benchmark
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.suite import Suite

Cells = list[tuple[str, int, Recipe]]


def detectable_by(plan: Suite, benchmark: Benchmark) -> float | None:
    """The smallest difference to the baseline that the suite tells from 0 with probability POWER; of one prompt None.

    `start` is one student, so its seeds add nothing; a trained baseline's do. All rows but the baseline's are compared.
    """
    if benchmark.count < 2:
        return None
    half = plan.assume.accuracy * (1 - plan.assume.accuracy) * (1 - plan.assume.correlation)
    sides, seeds = 1 if plan.baseline == START else 2, len(set(plan.seeds))
    return detectable(num_seeds=seeds, num_prompts=benchmark.count, comparisons=len(plan.variants),
                      seed_degrees=pooled_degrees(plan) or None,
                      seed_sd=plan.assume.seed_sd * math.sqrt(sides), prompt_sd=math.sqrt(half),
                      rest_sd=math.sqrt(half / benchmark.samples))


def pooled_degrees(plan: Suite) -> int:
    """Degrees of freedom of the pooled variance between seeds, as `seed_pools` counts them; 0: none is pooled."""
    trained, seeds = len({*plan.variants} | ({plan.baseline} - {START})), len(set(plan.seeds))
    if plan.seed_variance == "own" or trained < 2:
        return 0
    return (trained if plan.baseline == START else trained - 1) * (seeds - 1)


def benchmark_of(plan: Suite, cells: Cells) -> Benchmark:
    """The benchmark that the suite is compared on."""
    asked = cells[0][2].benchmarks
    return next((benchmark for benchmark in asked if benchmark.name == plan.benchmark), asked[0])


def described(plan: Suite, cells: Cells) -> str:
    """What the suite can detect, as a sentence, with what that assumes."""
    benchmark, count, told = benchmark_of(plan, cells), len(set(plan.seeds)), plan.assume
    smallest = detectable_by(plan, benchmark)
    if smallest is None:
        return (f"{plan.name}: 1 prompt tells no difference to {plan.baseline}; benchmark {benchmark.name} needs a "
                "count of 2 or more")
    seeds = f"{100 * told.seed_sd:g} points between seeds"
    if pooled := pooled_degrees(plan):
        seeds += f", which all variants share ({pooled} degrees of freedom)"
    elif count < MIN_SEEDS:
        seeds = f"nothing of seeds (seed variance not estimable with fewer than {MIN_SEEDS})"
    over = f" by Holm over {len(plan.variants)} comparisons" if plan.variants[1:] else ""
    return (f"{plan.name}: {count} seed{'s' if count > 1 else ''} x {benchmark.count} prompts can detect a difference "
            f"of {100 * smallest:.1f} points to {plan.baseline} (power {POWER:.0%}, "
            f"{ALPHA:.0%}{over}); assumed: {told.accuracy:.0%} right, correlation {told.correlation:g} between "
            f"two students' answers, prompts that are no kin, {seeds}")


def refuse_undetectable(plan: Suite, cells: Cells) -> None:
    """Raise RecipeError where the suite cannot detect what it looks for."""
    benchmark = benchmark_of(plan, cells)
    found = detectable_by(plan, benchmark)
    if plan.detect and (found is None or found > plan.detect):
        lower = [f"{change}: {100 * told:.1f} points" for change, told in changes(plan, benchmark)
                 if found is None or told < found]
        raise RecipeError(f"{described(plan, cells)}. The suite looks for {100 * plan.detect:g} points (detect). What "
                          f"lowers it: {'; '.join([*lower, 'measured assumptions (assume)'])}. --anyway, or detect=0, "
                          "runs it as it is")


def changes(plan: Suite, benchmark: Benchmark) -> list[tuple[str, float]]:
    """What could be changed of a suite, and what it could detect then; some changes make it detect less.

    Three seeds detect less than two, whose interval leaves the choice of seeds out.
    """
    seeds, prompts, samples = 2 * len(set(plan.seeds)), 2 * benchmark.count, 2 * benchmark.samples
    found = [(f"{seeds} seeds", plan.model_copy(update={"seeds": list(range(seeds))}), benchmark),
             (f"{prompts} prompts", plan, benchmark.model_copy(update={"count": prompts})),
             (f"{samples} samples", plan, benchmark.model_copy(update={"samples": samples}))]
    if fewer := len(plan.variants) // 2:
        found.append((f"{fewer} variant{'s' if fewer > 1 else ''}",
                      plan.model_copy(update={"variants": plan.variants[:fewer]}), benchmark))
    told = [(name, detectable_by(changed, asked)) for name, changed, asked in found]
    return [(name, smallest) for name, smallest in told if smallest is not None]
