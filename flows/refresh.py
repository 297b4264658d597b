"""Distil a model again: prompts that are new since its champion, from the champion on, behind a gate."""
from prefect import flow

from flows.distill import distill
from flows.pools import pool_for
from flows.promote import promote
from tasks.bootstrap import make_models, models_needed
from tasks.evaluate import evaluate_student
from tasks.gate import end_tick, gate_candidate
from tasks.opd.recipe import refreshes
from tasks.opd.refresh import candidates, gate, journal, planning
from tasks.opd.refresh.failpoints import failpoint
from tasks.opd.store.run_records import recorded
from tasks.prompts import make_prompts, training_prompts
from tasks.publish import publish
from tasks.refresh import decide_tick, next_tick
from tasks.ticks import collapse_missed, note_missed
from tasks.tracking.registry import champion_of


@flow(flow_run_name="{name}", persist_result=False)
def refresh(name: str, accept_drift: bool = False) -> dict:
    """Skip, raise an alarm, or distil from the champion and promote what is better; the journal's line on it."""
    ask = refreshes.load(name)
    collapse_missed(ask.name)
    with journal.only_one(ask.name) as free:
        if not free:
            return note_missed(ask.name, 1)
        champion = champion_of(ask.name)
        tick = next_tick(ask, champion)
        recipe = planning.recipe_of(ask, tick)
        with pool_for(recipe) as pool:
            decision = journal.decision_of(tick) or decided(ask, tick, champion, recipe, pool, accept_drift)
            if decision["action"] != "refresh":
                return decision
            result = distill(recipe, ask.name)
        failpoint("distilled")
        version = gate_candidate(ask, tick, result)
        automatic = gate.PASSED == version.tags["gate"] and ask.approve == "automatic"
        if automatic:
            promote(ask.name, version.number, "the gate", decision["reason"], over=tick.champion or "")
        publish(f"{ask.name}-{version.number}", {"gate.md": candidates.markdown(version.tags)}, result["mlflow_page"])
        return end_tick(ask, tick, version, promoted=automatic)


def decided(ask, tick, champion, recipe, pool, accept_drift) -> dict:
    """What the tick does, by its prompts, by the models as they are now and by how the champion answers new prompts."""
    with recorded(f"refresh-{ask.name}", refresh=ask.name):
        models, score = make_models(recipe.pair, models_needed(recipe), pool), None
        production = [benchmark for benchmark in recipe.benchmarks if benchmark.name == refreshes.PRODUCTION]
        if production and len(tick.held_out) >= refreshes.LEAST_ASKED:
            student = models["student"]
            held_out = make_prompts(production[0], student, pool, context_tokens=recipe.pair.context_tokens, use="test",
                                    train=training_prompts(recipe, student, pool))
            asked = recipe.model_copy(update={"benchmarks": production})
            reports, _ = evaluate_student(asked, student, {refreshes.PRODUCTION: held_out}, pool, when="start")
            score = reports[refreshes.PRODUCTION].counts["avg"]
        return decide_tick(ask, tick, champion, planning.identity_of(models), score, accept_drift=accept_drift)
