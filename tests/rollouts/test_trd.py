"""The teacher's rewrites: what it is shown, which stay, what is counted; and the limits in which TRD is a known method.

What the teacher writes is scripted, so that who passes is known; grader, tokenizer and files are the real ones.
"""
import dataclasses
import json

import pytest
import torch

from tasks.opd.core.costs import READ, WRITTEN
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import DATASET, STUDENT, TEACHER, Prompt, Rollout, write_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import tiny
from tasks.opd.engines.api import Capabilities, Completion, Signal
from tasks.opd.engines.pool import Session
from tasks.opd.models.tokenizers import control_tokens, render
from tasks.opd.recipe import loading
from tasks.opd.rollouts.trd import DRAFT, MEASURED, REFERENCE, REWRITE, gap_counts, refinement_prompt, rewritten, trd
from tasks.opd.rollouts.writers import Engines
from tests.limits import FORWARD, self_teacher
from tests.objective.test_equivalences import gradients_of, recipe_of, world_of, written
from tests.rollouts.test_filters import ROLLOUT

WORDS = tiny.build_tokenizer()
PROBLEMS = [tiny.problem(i) for i in range(4)]
PROMPTS = [Prompt(prompt_id=f"tiny:{i}", index=i, text=p.text, token_ids=render(WORDS, p.text), answer=p.answer,
                  solution=p.solution, entry=json.dumps(p.entry), domain=p.domain) for i, p in enumerate(PROBLEMS)]
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 96}


def ids_of(text: str) -> list[int]:
    return [*WORDS.encode(text), WORDS.eos_token_id]


class Scripted:
    """An engine that says what it is told to, and remembers what it was asked."""

    def __init__(self, completions=(), surprise=None):
        self.completions, self.surprise, self.asked, self.scored = list(completions), surprise, [], []

    def generate(self, prompts, sampling, seeds, *, progress=None):
        self.asked += [(ids, sampling, seed) for ids, seed in zip(prompts, seeds, strict=True)]
        return [Completion(token_ids=ids, logprobs=[-0.25] * len(ids), finish_reason="stop")
                for ids, _ in zip(self.completions, prompts, strict=True)]

    def score(self, prompts, completions, want, *, temperature=1.0, progress=None):
        self.scored += [(prompt, ids) for prompt, ids in zip(prompts, completions, strict=True)]
        return [Signal(sampled=torch.full((len(ids),), -self.surprise(prompt))) for prompt, ids in
                zip(prompts, completions)]

    def capabilities(self):
        return Capabilities(columns=frozenset({"sampled"} if self.surprise else ()))


@pytest.fixture
def make(tmp_path):
    """(the teacher's completions, prompts, what else the spec says) -> engines."""
    def engines(completions, prompts=PROMPTS, **other):
        inputs = {"prompts": tmp_path / "prompts" / "p0", "student": tmp_path / "model" / "s0",
                  "teacher": tmp_path / "model" / "t0"}
        inputs["prompts"].mkdir(parents=True, exist_ok=True)
        write_rows(inputs["prompts"] / "prompts.parquet", prompts, Prompt)
        for name in ("student", "teacher"):
            WORDS.save_pretrained(inputs[name] / "model")
        made = Engines(inputs, {"seed": 7, "round": 3, "context_tokens": 512, "sampling": SAMPLING,
                                "graders": {"tiny": {"name": "tiny", "params": {}}}, **other}, Session())
        made.teacher = Scripted(completions)
        return made
    return engines


def raw(index: int, reward: float | None, text: str = "") -> Rollout:
    """A rollout of problem `index`: right when its reward is 1, else a wrong answer."""
    text = text or f"answer: {PROBLEMS[index].answer if reward == 1 else 99}"
    return dataclasses.replace(
        ROLLOUT, rollout_id=f"3:tiny:{index}:student:0", prompt_id=f"tiny:{index}", group_id=f"3:tiny:{index}",
        prompt_token_ids=PROMPTS[index].token_ids, token_ids=ids_of(text), logprobs=[-1.0] * len(ids_of(text)),
        author=[STUDENT] * len(ids_of(text)), reward=reward, feedback="line 1: 12 + 7 is 19",
        policy=["s0"] * len(ids_of(text)))


RAW = [raw(0, 1.0), raw(1, 0.0), raw(2, 1.0), raw(3, 0.0)]
RIGHT = [True, True, False, False]                     # of the rewrites: pass to pass, repaired, damaged, still wrong
REWRITES = [ids_of(PROBLEMS[i].solution if right else "answer: 98") for i, right in enumerate(RIGHT)]


# ---- what the teacher is shown

def shown(draft: str, *, prompt: Prompt = PROMPTS[0], solution: bool = False) -> list[int] | None:
    return refinement_prompt(prompt, draft, WORDS, control_tokens(WORDS), solution)


def test_the_request_stands_after_question_and_draft_in_the_chat_template():
    plain = "\n\n".join([PROMPTS[0].text, DRAFT.format(draft="answer: 5"), REWRITE])
    assert shown(" answer: 5\n") == render(WORDS, plain)
    both = [PROMPTS[0].text, DRAFT.format(draft="answer: 5"), REFERENCE.format(solution=PROBLEMS[0].solution), REWRITE]
    assert shown("answer: 5", solution=True) == render(WORDS, "\n\n".join(both))
    bare = tiny.build_tokenizer()
    bare.chat_template = None
    assert refinement_prompt(PROMPTS[0], "answer: 5", bare, [], False) == bare.encode(plain)


@pytest.mark.parametrize("draft", ["", " \n", "answer: 5<|end|>", "<|user|>answer: 5"])
def test_an_empty_draft_and_one_that_spells_a_control_token_are_not_shown(draft):
    assert shown(draft) is None


@pytest.mark.parametrize("solution", [None, "", "line 1<|end|>"])
def test_without_a_solution_to_show_only_the_draft_can_be(solution):
    prompt = dataclasses.replace(PROMPTS[0], solution=solution)
    assert shown("answer: 5", prompt=prompt, solution=True) is None
    assert shown("answer: 5", prompt=prompt) is not None


# ---- the rewrites

def test_a_rewrite_is_the_teachers_under_its_prompt_and_law(make):
    engines = make(REWRITES)
    out = trd(RAW, engines, temperature=0.5)
    for i, (old, new, (view, sampling, seed)) in enumerate(zip(RAW, out, engines.teacher.asked, strict=True)):
        text = WORDS.decode(old.token_ids, skip_special_tokens=True)
        assert view == new.teacher_prompt_ids == refinement_prompt(PROMPTS[i], text, WORDS, [], False)
        assert sampling == {**SAMPLING, "temperature": 0.5} and seed == derive_seed(7, 3, old.rollout_id, "trd")
        changed = {"rollout_id": f"{old.rollout_id}:trd", "parent": old.rollout_id, "token_ids": REWRITES[i],
                   "logprobs": [-0.25] * len(REWRITES[i]), "author": [TEACHER] * len(REWRITES[i]),
                   "policy": ["t0"] * len(REWRITES[i]),
                   "teacher_prompt_ids": view, "finish_reason": "stop", "reward": None, "feedback": None}
        assert new == dataclasses.replace(old, **changed)
    assert len({seed for *_, seed in engines.teacher.asked}) == 4


@pytest.mark.parametrize("params, stays", [             # n: the rewrite, o: the rollout as it was, -: nothing
    ({}, "nnnn"), ({"keep": "repaired"}, "-n--"), ({"keep": "repaired", "others": "keep"}, "onoo"),
    ({"which": "failed"}, "-n-n"), ({"which": "failed", "others": "keep"}, "onon"),
    ({"which": "failed", "keep": "repaired", "others": "keep"}, "onoo"),
    ({"which": "succeeded"}, "n-n-"), ({"which": "succeeded", "others": "keep"}, "nono")])
def test_who_is_rewritten_and_what_stays_in_whose_place(make, params, stays):
    chosen = {"failed": [1, 3], "succeeded": [0, 2]}.get(params.get("which"), [0, 1, 2, 3])
    engines = make([REWRITES[i] for i in chosen])
    out = trd(RAW, engines, **params)
    assert len(engines.teacher.asked) == len(chosen)
    for letter, old, new, text in zip(stays, RAW, out, REWRITES, strict=True):
        assert new is None if letter == "-" else new is old if letter == "o" else \
            (new.parent, new.token_ids) == (old.rollout_id, text)


def test_passes_and_failures_lengths_and_tokens_are_told(make):
    engines = make([*REWRITES, REWRITES[1]])
    trd([*RAW, dataclasses.replace(RAW[1], rollout_id="again")], engines)
    before, after = sum(len(r.token_ids) for r in [*RAW, RAW[1]]), sum(map(len, [*REWRITES, REWRITES[1]]))
    assert engines.report == {"fail_to_pass": 2, "pass_to_fail": 1, "fail_to_fail": 1, "pass_to_pass": 1,
                              "length_change_mean_tokens": (after - before) / 5, "no_room": 0, "not_rewritten": 0}
    assert engines.costs == {WRITTEN[TEACHER]: after, READ: before}               # each draft stands in a prompt


def test_nothing_chosen_is_nothing_asked(make):
    engines = make([])
    assert trd([RAW[0], RAW[2]], engines, which="failed", others="keep") == [RAW[0], RAW[2]]
    assert engines.teacher.asked == [] and not engines.costs.total()


def test_what_cannot_be_rewritten_is_one_of_the_others_and_counted(make):
    silent = dataclasses.replace(RAW[1], token_ids=[WORDS.eos_token_id])
    unsolved = [dataclasses.replace(PROMPTS[0], solution=None), *PROMPTS[1:]]
    rollouts = [RAW[0], silent, *RAW[2:]]
    for others, place in (("drop", None), ("keep", silent)):
        engines = make([REWRITES[0], *REWRITES[2:]])
        out = trd(rollouts, engines, others=others)
        assert out[1] == place and [r.parent for r in (out[0], *out[2:])] == [r.rollout_id for r in [RAW[0], *RAW[2:]]]
        assert (engines.report["not_rewritten"], engines.report["no_room"]) == (1, 0)
    engines = make(REWRITES[2:], prompts=unsolved)
    assert [r and r.parent for r in trd(rollouts, engines, solution=True)] == [None, None, *(
        r.rollout_id for r in RAW[2:])]
    assert engines.report["not_rewritten"] == 2


def test_a_rollout_without_room_for_its_rewrite_is_left_and_a_context_for_none_refused(make):
    long = raw(1, 0.0, PROBLEMS[1].solution.replace("answer", "line"))
    rollouts = [RAW[0], long]
    lengths = [len(refinement_prompt(PROMPTS[i], WORDS.decode(r.token_ids, skip_special_tokens=True), WORDS, [], False))
               for i, r in enumerate(rollouts)]
    assert lengths[0] < lengths[1]
    engines = make(REWRITES[:1], context_tokens=lengths[1] + 95)                  # one too few for the long one
    assert [r and r.parent for r in trd(rollouts, engines)] == [RAW[0].rollout_id, None]
    assert (engines.report["not_rewritten"], engines.report["no_room"]) == (1, 1)
    assert all(trd(rollouts, make(REWRITES[:2], context_tokens=lengths[1] + 96)))
    with pytest.raises(DataError, match=f"pair.context_tokens {lengths[0] + 95}; raise it to {lengths[1] + 96}"):
        trd(rollouts, make([], context_tokens=lengths[0] + 95))


def test_rollouts_without_a_reward_are_refused(make):
    with pytest.raises(DataError, match="1 of 2 rollouts lack, such as 3:tiny:1:student:0; put trd before"):
        trd([RAW[0], raw(1, None)], make([]))


def test_the_gap_is_the_teachers_under_what_it_saw_minus_the_students_under_the_prompt(make):
    engines = make(REWRITES)
    engines.teacher.surprise = lambda prompt: 0.5 if len(prompt) > 100 else 2.0  # the request alone has 60
    engines.student = Scripted(surprise=lambda prompt: 1.5)
    trd(RAW, engines)
    assert engines.report["teacher_gap_raw_nats"] == pytest.approx(-0.5)          # -2.0 + 1.5
    assert engines.report["teacher_gap_rewritten_nats"] == pytest.approx(1.0)     # -0.5 + 1.5
    assert [prompt for prompt, _ in engines.student.scored] == [r.prompt_token_ids for r in RAW] * 2
    assert [ids for _, ids in engines.teacher.scored] == [r.token_ids for r in RAW] + REWRITES
    drafts, rewrites = sum(len(r.token_ids) for r in RAW), sum(map(len, REWRITES))
    assert engines.costs == {WRITTEN[TEACHER]: rewrites, READ: drafts + (drafts + rewrites)}  # shown, then scored


def test_the_gap_of_unequal_lengths_is_over_tokens_and_of_few_rollouts(make):
    engines = make([])
    engines.teacher.surprise, engines.student = lambda prompt: float(prompt[0]), Scripted(surprise=lambda prompt: 0.0)
    rows = [dataclasses.replace(ROLLOUT, prompt_token_ids=[k], token_ids=[5] * n) for k, n in ((1, 1), (4, 3))]
    assert gap_counts(engines, rows, rows)["teacher_gap_raw_nats"] == pytest.approx(-(1 + 3 * 4) / 4)
    many = [dataclasses.replace(RAW[0], rollout_id=str(i)) for i in range(MEASURED + 5)]
    engines = make([REWRITES[0]] * len(many))
    engines.teacher.surprise, engines.student = lambda prompt: 1.0, Scripted(surprise=lambda prompt: 1.0)
    trd(many, engines)
    assert len(engines.student.scored) == len(engines.teacher.scored) == 2 * MEASURED


# ---- the limits, as whole gradients

def rewrites(make, completions: list[list[int]], see) -> list:
    """The rollouts of the plain world, rewritten as told under the view `see` of each."""
    rollouts = written(recipe_of("trd", ()), world_of("plain").rollouts)
    prompts = {r.prompt_id: PROMPTS[0] for r in rollouts}
    return rewritten(rollouts, [see(r) for r in rollouts], prompts, make(completions), SAMPLING)


def gradient(variant: str, rollouts: list, *settings: str) -> torch.Tensor:
    return torch.cat(gradients_of(recipe_of(variant, settings), rollouts)[:2])


def test_the_identity_as_refiner_is_the_forward_kl_on_the_students_rollouts(make):
    plain = written(recipe_of(FORWARD, ()), world_of("plain").rollouts)
    same = rewrites(make, [r.token_ids for r in plain], lambda r: r.prompt_token_ids)
    assert {author for r in same for author in r.author} == {TEACHER}
    assert torch.equal(gradient("trd", same), gradient(FORWARD, plain))
    assert torch.equal(gradient("trd_solution", same), gradient(FORWARD, plain, self_teacher("same")))
    assert torch.equal(gradient("trd_failures", plain), gradient(FORWARD, plain))  # nothing was repaired


def test_a_refiner_that_ignores_the_draft_is_supervised_kd_on_the_teachers_text(make):
    own = [ids[::-1] + [5, 1] for ids in (r.token_ids for r in world_of("plain").rollouts)]
    new = rewrites(make, own, lambda r: r.prompt_token_ids)
    data = [dataclasses.replace(r, author=[DATASET] * len(r.author), teacher_prompt_ids=None,
                                logprobs=[float("nan")] * len(r.author)) for r in new]
    assert torch.equal(gradient("trd", new), gradient("supervised_kd", data))
    plain = written(recipe_of(FORWARD, ()), world_of("plain").rollouts)
    assert (gradient("trd", new) - gradient("trd", plain)).abs().max() > 1e-3


def test_the_teacher_scores_under_the_refinement_prompt_and_not_under_the_plain_one(make):
    drafts = [r.token_ids for r in world_of("plain").rollouts]
    seen = rewrites(make, drafts, lambda r: r.prompt_token_ids + r.token_ids + [11, 12])
    swapped = [dataclasses.replace(r, teacher_prompt_ids=None) for r in seen]
    for variant in ("trd", "trd_solution", "trd_failures"):
        right, wrong = (gradients_of(recipe_of(variant, ()), rows) for rows in (seen, swapped))
        assert abs(right[2]["forward_kl/loss_mean"] - wrong[2]["forward_kl/loss_mean"]) > 0.01
        assert (right[0] - wrong[0]).abs().max() > 1e-3


def test_the_variants_ask_for_what_their_papers_say():
    slots = {name: loading.load(name).refine[0].params for name in ("trd", "trd_failures", "trd_solution")}
    assert [(p["which"], p["keep"], p["others"], p["solution"]) for p in slots.values()] == [
        ("all", "all", "drop", False), ("failed", "repaired", "keep", False), ("all", "all", "drop", True)]
