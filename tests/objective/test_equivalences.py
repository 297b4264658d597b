"""Every variant, in a limit, is another one: its own YAML and its own terms, as the whole gradient that training takes.

Models are random and all different, so that a name mixed up shows; each gives only the columns that the recipe asks of
it, under the context that the recipe shows it. Where nothing else is said a row holds at the round's start *and* after
the student has left it, where ratios are not 1 and clips bite. Numbers of single slots are in their modules' tests.
"""
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.opd.core.records import DATASET, STUDENT, TEACHER, Rollout
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines import torch_engine
from tasks.opd.engines.api import Want
from tasks.opd.models.heads import head_of, hidden_states
from tasks.opd.objective.loss import Stats, coefficients
from tasks.opd.objective.terms import bind_terms
from tasks.opd.recipe import loading, requirements, slots, validation
from tasks.opd.recipe.schema import Recipe
from tasks.opd.scoring.self_teachers import REFRESHES
from tasks.opd.training.round import accumulate, start_round
from tasks.opd.training.scored_set import ScoredSet, make_scored
from tests.limits import FORWARD, FULL, GROUPS, LENGTHS, MEANS, PHASES, RECIPES, TABLE, Limit, V
from tests.tiny_models import rollout, train_spec

VARIANTS = sorted(file.stem for file in (loading.CONFIGS / "variants").glob("*.yaml"))
NAMES = ("live", "start", "ema", "teacher", "teacher_start", "expert_four", "expert_five", "random")
MOVE = 0.04                       # standard deviation of what is added to each weight when the student moves
WORDS = {"solution": [11, 12], "demonstration": [13, 14, 15], "experience": [16], "feedback": [17, 18]}
AUTHORS = {"student": STUDENT, "mixture": STUDENT, "teacher": TEACHER, "dataset": DATASET}
VERSIONS = {("start", "model"): "start", ("round", "model"): "live", ("round", "ema"): "ema"}
EOS = 1
REWARDS = {"all_wrong": 0.0, "all_right": 1.0}


def new_model(seed: int):
    """A random model, opinionated, in float64 to the last operation (a Llama's norms are float32 at best)."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=V, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5,
                        bos_token_id=None, eos_token_id=EOS)
    return GPT2LMHeadModel(config).double().eval()


MODELS = {name: new_model(seed) for seed, name in enumerate(NAMES)}
recipe_of = cache(loading.load)   # of a variant and a tuple of settings


class World(NamedTuple):
    rollouts: list[Rollout]
    special: frozenset[int]


@cache
def world_of(name: str) -> World:
    """Three prompts' rollouts: `plain`, or cut in the way the name says; `token_7`: one rollout of the one token 7."""
    if name.startswith("token_"):
        return World([replace(rollout(0, GROUPS[0][1], [int(name[6:])], reward=1.0), domain="four")], frozenset({EOS}))
    generator, rows = torch.Generator().manual_seed(derive_seed("equivalences")), []
    for group, (domain, prompt, rewards) in enumerate(GROUPS):
        for reward in rewards:
            length = LENGTHS[len(rows)]
            tokens = torch.randint(2, V, (length - 1,), generator=generator).tolist() + [EOS]
            rows.append(replace(rollout(len(rows), prompt, tokens, group=f"g{group}", reward=reward), domain=domain))
    cut = {"one_token": 1, "two_tokens": 2}.get(name)
    rows = [replace(r, token_ids=r.token_ids[:cut], author=r.author[:cut], logprobs=r.logprobs[:cut])
            for r in rows if not cut or len(r.token_ids) >= cut]
    if name in ("four", *REWARDS):
        rows = [replace(r, reward=REWARDS.get(name, r.reward)) for r in rows if r.domain == "four"]
    return World(rows, frozenset() if name == "nothing_special" else frozenset({EOS}))


@cache
@torch.no_grad()
def hidden_of(model: str, ids: tuple[int, ...], count: int) -> Tensor:
    """A model's hidden states [count, d] at the last tokens of prompt and completion."""
    tokens = torch.tensor([ids])
    return hidden_states(MODELS[model], tokens, torch.ones_like(tokens))[0, -count - 1:-1]


def written(recipe: Recipe, rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts dealt out to the recipe's writers by their fractions; the student's with what it thinks of them."""
    ends = torch.tensor([w.fraction for w in recipe.rollout.writers]).cumsum(0) * len(rollouts)
    out = []
    for i, r in enumerate(rollouts):
        writer = recipe.rollout.writers[int((ends <= i + 0.01).sum())].name
        hidden = hidden_of("live", (*r.prompt_token_ids, *r.token_ids), len(r.token_ids))
        tokens = torch.tensor(r.token_ids)
        own = torch_engine.columns(head_of(MODELS["live"]), hidden, tokens, torch_engine.Want(), 1.0)["sampled"]
        logprobs = own if writer == "student" else torch.full_like(own, torch.nan)
        out.append(replace(r, author=[AUTHORS[writer]] * len(r.token_ids), logprobs=logprobs.tolist()))
    return out


def shown(context, r: Rollout, rollouts: list[Rollout]) -> list[int] | None:
    """What stands in the teacher's prompt: the real contexts' rules, with ids for words."""
    if context.name == "same":
        return r.prompt_token_ids
    if context.name != "sibling":
        return WORDS[context.name] + r.prompt_token_ids
    others = [o for o in rollouts if o.group_id == r.group_id and o.rollout_id != r.rollout_id and o.reward >= 0.5]
    if others:
        return others[0].token_ids + r.prompt_token_ids
    return None if context.params["feedback"] == "never" else WORDS["feedback"] + r.prompt_token_ids


def scored_for(recipe: Recipe, rollouts: list[Rollout]) -> ScoredSet:
    """The scored set, each model with the columns asked of it, for the domains asked of it, and nothing more."""
    signals, heads = {}, {}
    refresh = recipe.teacher.refresh
    versions = {"self": VERSIONS[REFRESHES[refresh.name](**slots.bind(refresh, "refresh"))]}
    for name, want in requirements.needs(recipe).items():
        model, domains = versions.get(name, name), requirements.domains_of(recipe, name)
        want = Want(**want)
        heads[name], signals[name] = head_of(MODELS[model]), []
        for r in rollouts:
            prompt = r.teacher_prompt_ids or shown(recipe.teacher.context, r, rollouts)
            if prompt is None or domains is not None and r.domain not in domains:
                signals[name].append(None)
                continue
            hidden = hidden_of(model, (*prompt, *r.token_ids), len(r.token_ids))
            with torch.no_grad():
                ids = torch.tensor(r.token_ids)
                columns = torch_engine.columns(heads[name], hidden, ids, want, recipe.loss.temperature)
            signals[name].append(torch_engine.Signal(**columns, hidden=hidden if want.hidden else None))
    return make_scored(rollouts, signals, heads, recipe.loss.temperature)


def elsewhere(student):
    """The student after the round's start: every weight moved a little."""
    generator, moved = torch.Generator().manual_seed(derive_seed("moved")), deepcopy(student)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += MOVE * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return moved


@cache
def taken(variant: str, settings: tuple[str, ...], world: str) -> tuple[Tensor, Tensor, dict[str, float]]:
    """A variant's gradient [parameters] at the round's start, that after the student moved, and what is told then."""
    recipe, (rollouts, special) = recipe_of(variant, settings), world_of(world)
    return gradients_of(recipe, written(recipe, rollouts), special)


def gradients_of(recipe: Recipe, rollouts: list[Rollout], special=frozenset({EOS})):
    """What `taken` gives, of rollouts as they lie before the teacher."""
    scored, specs = scored_for(recipe, rollouts), requirements.terms_of(recipe)
    spec = train_spec(specs, vocabulary=V, loss=recipe.loss.model_dump(mode="json"), completion_limit=16)
    terms, student, gradients = bind_terms(specs), deepcopy(MODELS["live"]), []
    forward, took = start_round(student, scored, terms, spec, special)
    everything = list(range(len(rollouts)))
    coefficient = coefficients(terms, took, forward.columns, everything, spec["completion_limit"])
    for forward.model in (student, elsewhere(student)):
        stats = Stats()
        accumulate(forward, terms, took, coefficient, everything, scored, stats)
        gradients.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                                    for p in forward.model.parameters()]))
    return *gradients, stats.means()


def gradient(variant: str, settings: list[str], world: str, moved: bool) -> Tensor:
    """A variant's gradient at the round's start and, `moved`, after it too: one long vector."""
    start, later, _ = taken(variant, tuple(settings), world)
    return torch.cat([start, later]) if moved else start


def total(parts: list, world: str, moved: bool) -> Tensor | float:
    """The sum of factor * gradient over (factor, variant, settings)."""
    return sum((factor * gradient(variant, settings, world, moved) for factor, variant, settings in parts), 0.0)


def named(rows: list, name) -> list:
    return [pytest.param(row, id=f"{i}-{name(row)}") for i, row in enumerate(rows)]


def difference(row: Limit, settings: list[str], world: str, moved: bool) -> float:
    """How far the variant's gradient is from the sum of the others': the largest difference of an entry."""
    return float((gradient(row.variant, settings, world, moved) - total(row.equals, world, moved)).abs().max())


def test_every_variant_has_a_limit():
    assert {row.variant for row in TABLE} | {row[0] for row in MEANS + RECIPES} | set(BY_HAND) == set(VARIANTS)


@pytest.mark.parametrize("row", named(TABLE, lambda row: f"{row.variant}-{'+'.join(p[1] for p in row.equals) or 0}"))
def test_in_its_limit_a_variant_is_another(row):
    assert difference(row, row.settings, row.world, row.moved) <= row.apart
    limiting = row.settings or row.world != "plain" or not row.moved
    assert not limiting or difference(row, [], "plain", True) > 1e-5, "it is the other without any limit"


@pytest.mark.parametrize("row", named(MEANS, lambda row: row[0]))
def test_the_sampled_form_is_the_other_in_the_mean_over_the_token_written(row):
    variant, distribution, equals = row
    with torch.no_grad():
        share = MODELS[distribution](torch.tensor([GROUPS[0][1]])).logits[0, -1].softmax(-1)
    mean = sum(share[token] * gradient(variant, [], f"token_{token}", False) for token in range(V))
    assert (mean - total(equals, "token_7", False)).abs().max() < 1e-10
    assert (gradient(variant, [], "token_7", False) - total(equals, "token_7", False)).abs().max() > 1e-3


@pytest.mark.parametrize("row", named(RECIPES, lambda row: f"{row[0]}-{row[2]}"))
def test_variants_that_differ_in_who_writes_are_one_recipe_in_the_limit(row):
    variant, settings, other, theirs = row
    ours, default, theirs = (loading.load(name, keys).model_dump(exclude={"name", "about"})
                             for name, keys in ((variant, settings), (variant, []), (other, theirs)))
    assert ours == theirs and any(default[key] != theirs[key] for key in ("rollout", "refine"))


@pytest.mark.parametrize("row", named(PHASES, lambda row: f"{row[0]}-{row[1]}"))
def test_what_a_schedule_ends_in_is_another_variant(row):
    variant, other, settings = row
    recipe, theirs = loading.load(variant), loading.load(other, settings)
    last, problems = validation.completed(recipe.versions()[-1])
    assert problems == [] and last.terms == theirs.terms != recipe.terms
    assert [writer.name for writer in last.rollout.writers] == [writer.name for writer in theirs.rollout.writers]


def by_hand(loss) -> Tensor:
    """The gradient of loss(teacher, student [T, V]) summed, over all tokens: no packing, transformers' own logits."""
    student, value = deepcopy(MODELS["live"]), 0.0
    for r in world_of("plain").rollouts:
        ids, where = torch.tensor([r.prompt_token_ids + r.token_ids]), slice(len(r.prompt_token_ids) - 1, -1)
        with torch.no_grad():
            teacher = MODELS["teacher"](ids).logits[0, where].log_softmax(-1)
        value = value + loss(teacher, student(ids).logits[0, where].log_softmax(-1)).sum() / sum(LENGTHS)
    value.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters()])


BY_HAND = {FORWARD: lambda teacher, student: teacher.exp() * (teacher - student),
           FULL: lambda teacher, student: student.exp() * (student - teacher)}


@pytest.mark.parametrize("variant", BY_HAND)
def test_the_full_forms_are_their_formulas(variant):
    assert (gradient(variant, [], "plain", False) - by_hand(BY_HAND[variant])).abs().max() < 1e-10


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo", "ppo_clip", "eopd", "dasd", "fire_opd"])
def test_where_the_student_went_ratios_are_clipped(variant):
    told = taken(variant, (), "plain")[2]
    assert 0 < told[next(key for key in told if key.endswith("ratio_clipped_share"))] < 1
