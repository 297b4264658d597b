"""A refresh: a recipe distilled again from its own champion as prompts come in, and what decides over the result.

Files lie in configs/refreshes; they are read, overridden and refused as recipes and suites are (see `loading`).
"""
import re
import zoneinfo
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from tasks.opd.recipe import loading, slots, validation
from tasks.opd.recipe.schema import Recipe, Slot
from tasks.opd.recipe.settings import Model, Name, setting
from tasks.opd.recipe.slots import Problem

CHECKS = ("target", "retention", "pass_at", "truncation", "length", "divergence", "tokenizer", "contamination",
          "same_questions", "digest")  # of the gate; those of a benchmark are called <check>/<benchmark>
PRODUCTION = "production"               # the benchmark of prompts that came in and are never trained on
LEAST_ASKED = 20                        # new questions of it, below which its score says nothing of drift
CRON_FIELD = re.compile(r"[\d*/,A-Za-z#?-]+")


class Schedule(Model):
    """When a refresh is due: one of cron, interval_seconds and event; none of them: by hand only."""
    cron: str = setting("", "Cron", "Five fields: minute, hour, day of month, month, day of week.")
    timezone: str = setting("UTC", "Time zone", "Of the cron fields, for example Europe/Berlin.")
    interval_seconds: int = setting(0, "Interval", "Seconds between two starts; 0: no interval.", ge=0)
    event: str = setting("", "Event", "A Prefect event upon which it starts, for example opd.prompts.arrived.")

    @model_validator(mode="after")
    def is_one(self):
        given = [name for name in ("cron", "interval_seconds", "event") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of cron, interval_seconds, event; not {' and '.join(given)}")
        return self


class Incoming(Model):
    """Where prompts come from. A row that was there before is not new, whatever its file or place is now."""
    source: Slot = setting(..., "Source", "jsonl (a file, or a folder of such files), hub, tiny, reasoning_gym.")
    at_least: int = setting(1, "At least", "New rows below which a refresh waits for more.", ge=1)
    at_most: int = setting(4096, "At most", "New rows that a refresh takes; the rest waits for the next.", ge=1)
    held_out_share: float = setting(
        0.1, "Held-out share", "Of the rows, by hash: never trained on, asked as benchmark `production`; 0: none.",
        ge=0, lt=1)
    anchors: int = setting(0, "Anchors", "Old rows, learnt by the champion, that are trained on again.", ge=0)


class Drift(Model):
    """What counts as drift. Of the prompts it is an alarm, and nothing is trained; of the rest a reason to refresh."""
    length_psi: float = setting(
        0.25, "Length", "Population stability index of the prompts' lengths against those learnt.", gt=0)
    words_js: float = setting(
        0.2, "Words", "Jensen-Shannon divergence of the prompts' words from those learnt, nats (at most ln 2).", gt=0)
    z: float = setting(
        4.0, "z-score", "Standard deviations above the earlier refreshes' values that are drift too, where the value "
        "is above half of its limit.", gt=0)
    over: int = setting(10, "Over", "How many earlier refreshes the z-score looks at; below 3 there is none.", ge=3)
    age_days: float = setting(0.0, "Age", "Days after which the champion is old; 0: never.", ge=0)
    score_drop: float = setting(
        0.1, "Score drop", "By how much the champion's mean reward on `production` may be below its best earlier one.",
        gt=0)


class Gate(Model):
    """What a candidate must show against the champion, paired over prompts."""
    target: str = setting(..., "Target", "The benchmark on which the candidate must be better.")
    margin: float = setting(
        0.0, "Margin", "Mean reward by which it must be better: the lower end of the interval lies above.", ge=0, lt=1)
    parity_margin: float = setting(
        0.0, "Parity", "It may be worse by less than this when its answers are cheaper; 0: never.", ge=0, lt=1)
    cheaper: float = setting(
        0.1, "Cheaper", "Share of tokens by which answers must be shorter for that.", gt=0, lt=1)
    retention: dict[str, float] = setting(
        {}, "Retention", "Benchmark -> mean reward by which it may be worse: the interval's lower end lies above -it.")
    pass_at_margin: float = setting(
        0.05, "pass@k margin", "By how much pass@k may fall, for every k above 1 that a benchmark asks.", gt=0, lt=1)
    truncated_margin: float = setting(
        0.02, "Truncation", "By how much the share of answers that run into the limit may rise.", ge=0, lt=1)
    length_ratio: float = setting(1.5, "Length", "Largest ratio of mean answer lengths, either way.", gt=1)
    ngram: int = setting(
        13, "n-gram", "Words in a row that a trained prompt and a benchmark's question must not share.", ge=3)
    severity: dict[str, Literal["error", "warning"]] = setting(
        {}, "Severity", "By check, where it is not the usual one: warning for length and divergence, else error.")


class Refresh(Model):
    """What is distilled again, when, and what the gate asks."""
    name: Name = setting(..., "Name", "Of the refresh; the registered model and the MLflow experiment.")
    recipe: str = setting(..., "Recipe", "A file, or a name in configs/variants.")
    set: list[str] = setting([], "Overrides", "key=value, for the recipe.")
    prompts: Incoming = setting(..., "Prompts", "Where they come from.")
    schedule: Schedule = setting(Schedule(), "Schedule", "When it is due.")
    drift: Drift = setting(Drift(), "Drift", "What counts as drift.")
    gate: Gate = setting(..., "Gate", "What a candidate must show.")
    approve: Literal["automatic", "manual"] = setting(
        "automatic", "Approval", "manual: what passes the gate waits as a candidate for `opd promote`.")
    keep_versions: int = setting(
        3, "Versions kept", "Newest versions that keep their weights, beside champion, previous and candidate.", ge=0)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Refresh:
    """The refresh of a file, or of a name in configs/refreshes, complete and checked together with its recipe.

    Raises: RecipeError with all that is wrong, one line each: file:line or override, key, value, what is allowed.
    """
    errors: list[str] = []
    file = loading.located("refresh", str(path), Path())
    layer = loading.with_overrides(loading.chained(file), overrides, errors)
    layer.sources[()] = loading.label_of(file)
    refresh, problems = validation.parsed(Refresh, layer.data, loading.resolved)
    if refresh:
        recipe = loading.tried(errors, None, recipe_of, refresh)
        problems += [*own_problems(refresh), *(recipe_problems(refresh, recipe) if recipe else ())]
    validation.refuse(problems, layer.sources, errors)
    return refresh


def recipe_of(refresh: Refresh, overrides: Sequence[str] = ()) -> Recipe:
    """The refresh's recipe, with overrides over its own. Raises RecipeError."""
    return loading.load(refresh.recipe, [*refresh.set, *overrides])


def own_problems(refresh: Refresh) -> Iterator[Problem]:
    """What is wrong with a refresh whatever its recipe is."""
    source, problems = slots.check(refresh.prompts.source, "source")
    yield from (Problem(f"prompts.source.{p.key}", p.message, p.value) for p in problems)
    fields = refresh.schedule.cron.split()
    if fields and not (len(fields) == 5 and all(map(CRON_FIELD.fullmatch, fields))):
        yield Problem("schedule.cron", "must have five fields: minute, hour, day of month, month, day of week, for "
                      "example 30 2 * * *", refresh.schedule.cron)
    if refresh.schedule.timezone not in zoneinfo.available_timezones():
        yield Problem("schedule.timezone", "unknown time zone; for example Europe/Berlin", refresh.schedule.timezone)
    for check in (check for check in refresh.gate.severity if check not in CHECKS):
        yield Problem(f"gate.severity.{check}", f"unknown check; {slots.nearest(check, CHECKS)}")
    for name, margin in refresh.gate.retention.items():
        if not 0 <= margin < 1:
            yield Problem(f"gate.retention.{name}", "must lie between 0 and below 1", margin)


def recipe_problems(refresh: Refresh, recipe: Recipe) -> Iterator[Problem]:
    """What does not fit the recipe: benchmarks it lacks, names that are taken, anchors that leave no room."""
    known = [benchmark.name for benchmark in recipe.benchmarks]
    if PRODUCTION in known:
        yield Problem("recipe", f"its benchmark {PRODUCTION} has the name of the prompts held out here; rename it",
                      refresh.recipe)
    for key, name in (("target", refresh.gate.target), *((f"retention.{n}", n) for n in refresh.gate.retention)):
        if name not in [*known, PRODUCTION]:
            yield Problem(f"gate.{key}", f"not a benchmark of the recipe; {slots.nearest(name, [*known, PRODUCTION])}",
                          name)
    if refresh.prompts.anchors >= (room := capacity(recipe)):
        yield Problem("prompts.anchors", f"leave no room for new prompts: rounds x prompts_per_round is {room}",
                      refresh.prompts.anchors)


def capacity(recipe: Recipe) -> int:
    """Prompts that a run takes: with more, some would never be trained on."""
    return recipe.rounds * recipe.rollout.prompts_per_round
