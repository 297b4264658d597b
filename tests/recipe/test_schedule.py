"""What changes as a run goes: patches by round and by share, controllers, and what is refused of them at load."""
from types import SimpleNamespace

import pytest

from flows.cli import main as cli
from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import controllers, loading, schedule
from tasks.opd.recipe.checks import recipes, schedules

KL = "train/reverse_kl/loss_mean"
GAP = "{advantage: teacher_gap, estimator: policy_gradient}"
NEAR_START = "{target: reference, support: full, divergence: reverse_kl, coefficient: 0.1}"
ADAPTIVE = f"{{name: proportional, moves: terms.1.coefficient, low: 0.01, high: 1, metric: {KL}, target: 0.05}}"
TERMS = f"terms=[{GAP}, {NEAR_START}]"


def errors(variant, *overrides) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loading.load(variant, overrides)
    return str(caught.value).splitlines()


def record(round_index: int = 0, *, tokens: int = 0, chosen: dict | None = None, **metrics) -> dict:
    return {"round": round_index, "set": chosen or {}, "counts": {}, "metrics": metrics,
            "spent": {"trained_tokens": tokens}, "cut": False}


def scheduled(*patches: str, rounds: int = 10, budget: int = 0):
    return loading.load("opd_reverse_kl", [f"schedule=[{', '.join(patches)}]", f"rounds={rounds}",
                                           f"budget.trained_tokens={budget}"])


def patch(value: float, **start) -> str:
    (name, place), = start.items()
    return f"{{{name}: {place}, set: {{terms.0.coefficient: {value}}}}}"


def coefficients(recipe, tokens: list[int]) -> list[float]:
    """The first term's coefficient by round, where the rounds before left so many trained tokens behind."""
    past = [record(i, tokens=seen) for i, seen in enumerate(tokens)]
    return [recipe.at(i, past[:i]).terms[0].coefficient for i in range(len(tokens) + 1)]


def test_a_share_is_of_the_rounds_where_there_is_no_budget():
    # 45 rounds: a fifth of them lies behind as round 9 begins
    veto = loading.load("veto", ["rounds=45"])
    betas = [veto.at(i).terms[0].target.params["beta"] for i in (0, 8, 9, 17, 18, 26, 27, 35, 36, 44)]
    assert betas == [0.8, 0.8, 0.64, 0.64, 0.48, 0.48, 0.32, 0.32, 0.16, 0.16]
    assert coefficients(scheduled(patch(2.0, at=0.5), rounds=5), [0] * 4) == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_a_share_is_of_the_token_budget_where_there_is_one():
    recipe = scheduled(patch(2.0, at=0.2), patch(3.0, at=0.5), rounds=250, budget=1000)
    # 199 < 200; 200 = a fifth; 499 < 500; 800
    assert coefficients(recipe, [199, 200, 499, 800]) == [1.0, 1.0, 2.0, 2.0, 3.0]


def test_a_round_that_depends_on_rounds_before_asks_for_their_records():
    recipe = scheduled(patch(2.0, at=0.2), budget=1000)
    with pytest.raises(ValueError, match="round 3 depends on the rounds before it, but 0 of their records"):
        recipe.at(3)
    assert scheduled(patch(2.0, at=0.2)).at(3).terms[0].coefficient == 2.0  # of ten rounds three: no record needed


def test_a_patch_may_not_write_into_the_recipe_it_patches():
    recipe = scheduled("{round: 1, set: {rollout.sampling: {temperature: 1.0, top_p: 1.0}}}", patch(2.0, round=2))
    before = recipe.model_dump()
    versions = recipe.versions()
    assert [v.terms[0].coefficient for v in versions] == [1.0, 1.0, 2.0] and recipe.model_dump() == before


@pytest.mark.parametrize("overrides, parts", [
    (["schedule=[{set: {train.epochs: 2}}]"], ["schedule.0", "give exactly one of round, at"]),
    (["schedule=[{round: 1, at: 0.5, set: {train.epochs: 2}}]"], ["schedule.0", "give exactly one of round, at"]),
    (["schedule=[{at: 1.0, set: {train.epochs: 2}}]"], ["schedule.0.at = 1.0", "less than 1"]),
    (["schedule=[{at: -0.1, set: {train.epochs: 2}}]"], ["schedule.0.at = -0.1", "greater than or equal to 0"]),
    (["schedule=[{round: 45, set: {train.epochs: 2}}]"], ["schedule.0.round = 45", "rounds 0 to 44", "`at`"]),
    (["schedule=[{round: 4, set: {train.epochs: 2}}, {round: 4, set: {loss.temperature: 1.0}}]"],
     ["schedule.1: begins at round 4, not after schedule.0", "into one `set`"]),
    (["schedule=[{at: 0.4, set: {train.epochs: 2}}, {at: 0.3, set: {train.epochs: 3}}]"],
     ["schedule.1: begins at 30% of the run, not after schedule.0"]),
    (["schedule=[{at: 0.2, set: {train.epochs: 2}}, {round: 9, set: {train.epochs: 3}}]"],  # 0.2 of 45 is round 9
     ["schedule.1: begins at round 9, not after schedule.0"]),
    (["schedule=[{at: 0.2, set: {train.epochs: 2}}, {round: 10, set: {train.epochs: 3}}]", "budget.trained_tokens=9"],
     ["schedule: some patches begin in a round", "give all of them `at`"]),
    (["schedule=[{at: 0.2, set: {rollout.sampling.top_p: 0.9}}]"],
     ["schedule.0.set: from 20% of the run on, rollout.sampling.top_p = 0.9"]),
    (["schedule=[{at: 0.2, set: {controllers: []}}]", f"controllers=[{ADAPTIVE}]", TERMS],
     ["schedule.0.set", "controllers: holds for a whole run"]),
])
def test_a_schedule_that_cannot_be_meant_is_refused(overrides, parts):
    got = errors("opd_reverse_kl", *overrides)
    assert len(got) == 1 and all(part in got[0] for part in parts), got


AVERAGE = "teacher={model: self, refresh: {name: ema, decay: 0.9}}"


@pytest.mark.parametrize("overrides, where", [
    (["teacher.model=self", "schedule=[{round: 1, set: {teacher.refresh.name: ema}}]"], "schedule.0.set"),
    (["teacher.model=self", "schedule=[{round: 1, set: {teacher: {model: self, refresh: ema}}}]"], "schedule.0.set"),
    ([AVERAGE, "schedule=[{round: 1, set: {train.epochs: 2}}, {at: 0.5, set: {teacher: {model: teacher}}}]"],
     "schedule.1.set"),
])
def test_a_moving_average_that_begins_or_ends_later_is_refused_however_the_patch_says_it(overrides, where):
    got = errors("opd_reverse_kl", *overrides)
    assert len(got) == 1 and f"{where}: a moving average" in got[0] and "neither begin nor end" in got[0], got


def test_a_moving_average_that_is_kept_passes_whatever_else_changes():
    later = "schedule=[{round: 1, set: {teacher.refresh.decay: 0.99}}, {round: 2, set: {train.epochs: 2}}]"
    assert loading.load("opd_reverse_kl", [AVERAGE, later]).at(1).teacher.refresh.params["decay"] == 0.99


def test_a_patch_that_a_short_run_never_reaches_is_noted():
    note, = recipes.notes(loading.load("veto", ["rounds=3"]), 3)  # the last round begins at two thirds
    assert note.startswith("with 3 rounds, what the schedule says from 80% of the run on never happens")
    assert recipes.notes(loading.load("veto", ["rounds=45"]), 45) == []
    budget = loading.load("veto", ["rounds=250", "budget.trained_tokens=1000"])
    assert recipes.notes(budget, 250) == [] == schedules.never_held(budget, 4, [record(tokens=800)])
    note, = schedules.never_held(budget, 4, [record(tokens=790)])
    assert note.startswith("with 4 rounds, what the schedule says from 80% of the run on")


def controlled(controller: str, *overrides: str):
    return loading.load("opd_reverse_kl", [TERMS, f"controllers=[{controller}]", *overrides])


def test_a_coefficient_follows_its_kl_as_ziegler_has_it():
    recipe = controlled(ADAPTIVE)
    assert recipe.at(0).terms[1].coefficient == 0.1
    # KL 0.055 is a tenth above 0.05: x 1.01; KL 0.5 is cut to a fifth above: x 1.02; KL 0 to a fifth below: x 0.98
    history = []
    for kl, value in ((0.055, 0.101), (0.5, 0.10302), (0.0, 0.1009596)):
        before = schedule.controlled(recipe.at(len(history), history).model_dump(mode="json"))
        history.append(record(len(history), chosen=before, **{KL: kl}))
        assert recipe.at(len(history), history).terms[1].coefficient == pytest.approx(value, abs=1e-12)


def test_a_controller_never_leaves_its_bounds():
    recipe = controlled(ADAPTIVE)
    for start, kl, bound in ((0.999, 9.0, 1.0), (0.0101, 0.0, 0.01)):
        past = [record(chosen={"terms.1.coefficient": start}, **{KL: kl})]
        assert recipe.at(1, past).terms[1].coefficient == bound


def test_a_budget_grows_while_answers_are_cut_and_shrinks_after_three_rounds_without():
    recipe = controlled("{name: stepwise, moves: rollout.sampling.max_new_tokens, low: 64, high: 120, step: 16, "
                        "metric: rollout/truncated_share, above: 0.1, patience: 3}")
    limits, history = [], []
    for share in (0.2, 0.1, 0.0, 0.0, 0.09, 0.0, 0.0, 0.0, 0.5):
        limits.append(recipe.at(len(history), history).rollout.sampling.max_new_tokens)
        history.append(record(len(history), chosen={"rollout.sampling.max_new_tokens": limits[-1]},
                              **{"rollout/truncated_share": share}))
    assert limits == [96, 112, 120, 120, 120, 104, 104, 104, 88] and all(type(limit) is int for limit in limits)
    assert recipe.at(9, history).rollout.sampling.max_new_tokens == 104


def budgets(variant: str, metric: str, values: list[float]) -> list[int]:
    """What the student may write in each round, where the rounds before had these values of a metric."""
    recipe, history = loading.load(variant, ["pair=tiny", "rounds=20"]), []
    for value in (*values, 0.0):
        now = recipe.at(len(history), history).rollout.writers[0].params["tokens"]
        history.append(record(len(history), chosen={"rollout.writers.0.tokens": now}, **{metric: value}))
    return [one["set"]["rollout.writers.0.tokens"] for one in history]


def test_a_variants_own_controller_moves_its_writers_budget():
    metric = "train/candidate_gap/prune_suffix_reached_share"
    assert budgets("prune_opd", metric, [0.1, 0.5, 0.0, 0.0, 0.0, 0.0]) == [48, 56, 64, 64, 64, 56, 56]
    metric = "train/teacher_gap/before_loop_effective_length_p90_tokens"
    assert budgets("short_to_long", metric, [40.0, 30.0, 100.0, 2.0]) == [96, 50, 38, 96, 8]   # 1.25 times, in bounds


def test_a_writers_budget_stays_within_the_recipes_limit_from_which_it_then_falls_at_once():
    metric = "train/candidate_gap/prune_suffix_reached_share"
    recipe = loading.load("prune_opd", ["pair=tiny", "rounds=20", "rollout.sampling.max_new_tokens=60"])
    history = []
    for value in (0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0):
        now = recipe.at(len(history), history).rollout.writers[0].params["tokens"]
        history.append(record(len(history), chosen={"rollout.writers.0.tokens": now}, **{metric: value}))
    assert [one["set"]["rollout.writers.0.tokens"] for one in history] == [48, 56, 60, 60, 60, 60, 52]


def test_a_round_without_the_metric_moves_nothing_and_one_with_it_is_looked_back_to():
    history = [record(0, m=2.0), record(1)]
    assert controllers.multiple(1.0, history, metric="m", factor=2.0) == 4.0
    assert controllers.proportional(1.0, history, metric="m", target=1.0, gain=0.5, limit=1.0) == 1.5
    assert controllers.stepwise(5.0, [record(0, m=0.0), record(1), record(2, m=0.0)], metric="m", above=1.0, step=1.0,
                                patience=2) == 4.0


def test_a_negative_gain_lowers_what_is_above_its_target():
    assert controllers.proportional(1.0, [record(e=2.2)], metric="e", target=2.0, gain=-0.5) == pytest.approx(0.95)


def test_a_metric_that_no_round_has_is_named_with_those_near_it():
    with pytest.raises(RecipeError, match="'train/reverse_kl/loss_mena' is not among the 1 of round 0; near: train/re"):
        controllers.proportional(1.0, [record(**{KL: 0.1})], metric="train/reverse_kl/loss_mena", target=1.0)


WARM = ("{name: proportional, moves: rollout.sampling.temperature, low: 0.7, high: 1.3, metric: e, target: 1, "
        "gain: -0.1}")


@pytest.mark.parametrize("overrides, parts", [
    ([f"controllers=[{ADAPTIVE.replace('proportional', 'proportionl')}]", TERMS],
     ["controllers.0 = \"proportionl\"", "unknown controller", "did you mean proportional?"]),
    ([f"controllers=[{ADAPTIVE.replace('target: 0.05', 'target: 0')}]", TERMS],
     ["controllers.0.target = 0", "greater than 0"]),
    ([f"controllers=[{ADAPTIVE.replace('low: 0.01, ', '')}]", TERMS], ["controllers.0.low: missing"]),
    ([f"controllers=[{ADAPTIVE.replace('high: 1', 'high: 0.01')}]", TERMS], ["controllers.0.low = 0.01", "below high"]),
    ([f"controllers=[{ADAPTIVE.replace('high: 1', 'high: 0.05')}]", TERMS],
     ["controllers.0.high = 0.05", "terms.1.coefficient begins at 0.1, outside [0.01, 0.05]"]),
    ([f"controllers=[{ADAPTIVE.replace('terms.1', 'terms.2')}]", TERMS],
     ["controllers.0.moves = \"terms.2.coefficient\"", "no such key"]),
    ([f"controllers=[{ADAPTIVE.replace('terms.1.coefficient', 'teacher.model')}]", TERMS], ["is no number"]),
    ([f"controllers=[{ADAPTIVE.replace('terms.1.coefficient', 'seed').replace('0.01', '0')}]", TERMS],
     ["controllers: may lead to seed = 1; then seed: holds for a whole run"]),
    ([f"controllers=[{ADAPTIVE.replace('terms.1.coefficient', 'train.epochs')}]", TERMS],
     ["train.epochs is a whole number; so must its bounds be"]),
    ([f"controllers=[{ADAPTIVE}, {ADAPTIVE}]", TERMS],
     ["controllers.1.moves", "controllers.0 sets terms.1.coefficient"]),
    ([f"controllers=[{ADAPTIVE}]", TERMS, "schedule=[{at: 0.5, set: {terms.1: " + NEAR_START + "}}]"],
     ["controllers.0.moves", "schedule.0 sets terms.1, too"]),
    ([f"controllers=[{WARM}]"],  # the sampled term needs its own distribution at every temperature
     ["controllers: may lead to rollout.sampling.temperature = 0.7; then rollout.sampling.temperature = 0.7: terms.0"]),
])
def test_a_controller_that_may_lead_astray_is_refused(overrides, parts):
    got = errors("opd_reverse_kl", *overrides)
    assert len(got) == 1 and all(part in got[0] for part in parts), got


def test_every_corner_of_two_controllers_is_looked_at():
    prompts = "prompts.max_prompt_tokens=64"  # the context has 256 tokens: 64 + 192 fit, 65 do not
    limit = "{name: stepwise, moves: rollout.sampling.max_new_tokens, low: 8, high: %d, metric: m, above: 0.1, step: 8}"
    both = f"controllers=[{ADAPTIVE}, {limit}]"
    context = loading.load("opd_reverse_kl").pair.context_tokens
    assert controlled(ADAPTIVE, both % (context - 64), prompts)
    got, = errors("opd_reverse_kl", TERMS, both % (context - 63), prompts)
    assert f"terms.1.coefficient = 0.01, rollout.sampling.max_new_tokens = {context - 63}; then prompts.max_pro" in got


def test_a_controller_is_checked_after_every_patch_too():
    warm = ["terms=[{divergence: forward_kl, support: full}]", f"controllers=[{WARM}]"]
    assert loading.load("opd_reverse_kl", warm)  # a whole divergence may be sampled at any temperature
    got, = errors("opd_reverse_kl", *warm, f"schedule=[{{round: 3, set: {{terms: [{GAP}]}}}}]")
    assert "rollout.sampling.temperature = 0.7" in got


def test_what_changes_is_told_with_its_bounds():
    recipe = controlled(ADAPTIVE, "schedule=[{at: 0.5, set: {train.epochs: 2, loss.temperature: 1.0}}]")
    assert recipes.report(recipe)["changes"] == [
        "from 50% of the run on: train.epochs, loss.temperature",
        "terms.1.coefficient is moved after every round by controller proportional, within [0.01, 1]"]


def test_check_prints_what_changes():
    arguments = SimpleNamespace(recipe="opd_reverse_kl", overrides=[TERMS, f"controllers=[{ADAPTIVE}]"])
    _, text = cli.check(arguments)
    assert "terms.1.coefficient is moved after every round by controller proportional, within [0.01, 1]" in text
    assert "from 20% of the run on: terms.0.target" in cli.check(SimpleNamespace(recipe="veto", overrides=[]))[1]
