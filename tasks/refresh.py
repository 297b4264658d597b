"""The tasks of a refresh's ticks: which is next, and what it does."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe.refreshes import Refresh
from tasks.opd.refresh import journal, planning
from tasks.opd.refresh.decision import decide
from tasks.opd.refresh.journal import Tick
from tasks.ticks import raise_alarm
from tasks.tracking import registry
from tasks.tracking.registry import Version


@task(cache_policy=NO_CACHE, task_run_name="next-tick")
def next_tick(ask: Refresh, champion: Version | None) -> Tick:
    """The tick that was decided and has not ended, else a new one with the rows that are new since the watermark.

    An unfinished tick whose champion was replaced meanwhile, not by its own candidate, is abandoned.
    """
    tick, number = journal.unfinished(ask.name), champion.number if champion else None
    if tick and (tick.champion == number or champion.tags["tick"] == str(tick.number)):
        return tick
    if tick:
        journal.end(tick, journal.ABANDONED, f"version {number} became the champion meanwhile")
    taken = journal.taken(ask.name, registry.ancestry(champion))
    return planning.propose(ask, taken, champion=number, folder=champion.tags["folder"] if champion else "")


@task(cache_policy=NO_CACHE, task_run_name="decide-{tick.number:04d}")
def decide_tick(ask: Refresh, tick: Tick, champion: Version | None, teacher: str, score: float | None, *,
                accept_drift: bool) -> dict:
    """The journal's line that says what the tick does; an alarm is raised in Prefect too."""
    taken = journal.taken(ask.name, registry.ancestry(champion))
    measures = planning.measures_of(ask, tick, taken, champion=champion and champion.tags, teacher=teacher, score=score)
    found = decide(len(tick.new), ask.prompts.at_least, measures, num_old=len(tick.old), accept_drift=accept_drift)
    if found.action == "alarm":
        raise_alarm(ask.name, found.reason)
    return journal.decide(tick, found, measures, teacher=teacher, score=score)
