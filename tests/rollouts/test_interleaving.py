"""SKD and relays: the distribution of what is emitted, by enumeration; its limits; what drafts may not change."""
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.opd.core import progress
from tasks.opd.core.costs import READ, WRITTEN
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import DATASET, STUDENT, TEACHER
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines.in_top_k import in_top_k
from tasks.opd.engines.pool import Session
from tasks.opd.engines.sampling import nucleus, sampling_logprobs, uniforms_of
from tasks.opd.recipe import slots
from tasks.opd.rollouts import turns
from tasks.opd.rollouts.interleaving import relay, skd
from tasks.opd.rollouts.refiners import REFINERS
from tasks.opd.rollouts.writers import Engines
from tests.small_llama import save_llama
from tests.tiny_models import rollout

V, EOS, NEW = 60, 2, 24
PROMPTS = [[5, 9, 11], [7], [20, 21, 22, 23, 24, 25, 26, 27], [5, 9, 11], [3, 4, 5, 6], [30, 31]]
AS_SAID = 10**9                  # decays so slowly that k stays, and drafts are as long as they are said to be
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": NEW}


def engines_of(folder, session, **sampling) -> Engines:
    """A refiner's engines, of the models `student` and `teacher` in a folder, in float64."""
    spec = {"round": 0, "seed": 7, "engine": {"name": "torch", "dtype": "float64", "batch_tokens": 65536},
            "sampling": SAMPLING | sampling}
    return Engines({name: folder / name for name in ("student", "teacher")}, spec, session)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        save_llama(home / name / "model", seed=seed)
    return home


@pytest.fixture
def engines(folder):
    with Session() as session:
        yield engines_of(folder, session)


def drafts(engines, prompts=PROMPTS, seed=0):
    """The student's own rollouts."""
    written = engines.engine("student", name="torch").generate(prompts, engines.sampling,
                                                               [seed + i for i in range(len(prompts))])
    return [replace(rollout(i, prompt, c.token_ids, logprobs=c.logprobs), finish_reason=c.finish_reason, reward=1.0)
            for i, (prompt, c) in enumerate(zip(prompts, written))]


def what(rollouts):
    return [(r.rollout_id, r.token_ids, r.author, r.finish_reason) for r in rollouts]


# ---- limits
def test_with_k_the_whole_vocabulary_a_rollout_stays_itself(engines):
    before = drafts(engines)
    assert all(new is old for new, old in zip(skd(before, engines, k=V), before))
    assert engines.report["accepted_share"] == 1.0 and engines.report["blocks_mean"] == 1.0
    assert engines.costs == {WRITTEN[STUDENT]: 0, WRITTEN[TEACHER]: 0, READ: sum(len(r.token_ids) for r in before)}


@pytest.mark.parametrize("other", [{}, {"teacher_temperature": 0.5, "teacher_top_p": 0.7}])
def test_with_k_zero_the_teacher_samples_as_it_does_alone(engines, other):
    before = drafts(engines)
    after = skd(before, engines, k=0, **other)
    seeds = [derive_seed(7, 0, r.rollout_id, "teacher redraws") for r in before]
    warped = {key.removeprefix("teacher_"): value for key, value in other.items()}
    alone = engines.teacher.generate(PROMPTS, SAMPLING | warped, seeds)
    assert [r.token_ids for r in after] == [c.token_ids for c in alone]
    for new, old, written in zip(after, before, alone):
        assert set(new.author) == {TEACHER} and new.finish_reason == written.finish_reason
        assert new.logprobs == pytest.approx(written.logprobs, abs=1e-9)
        assert (new.rollout_id, new.parent, new.reward) == (f"{old.rollout_id}:skd", old.rollout_id, None)
        assert (set(new.policy), new.origin, new.teacher_prompt_ids) == ({"teacher"}, old.origin, None)
    assert engines.report["accepted_share"] == 0.0


def test_others_rollouts_pass_unchanged(engines):
    theirs = [replace(r, author=[who] * len(r.author)) for r, who in zip(drafts(engines), (TEACHER, DATASET))]
    assert skd(theirs, engines, k=0) == theirs and engines.report["accepted_share"] is None


def test_every_token_drafted_written_and_verified_is_counted(engines):
    """With k 0 and drafts of one token every draft is rejected: of a rollout the teacher reads the first window, then
    each draft; all but the first token that it writes stand in the place of one of the student's."""
    before = drafts(engines)
    lengths = [len(r.token_ids) for r in skd(before, engines, k=0, draft_tokens=1)]
    redrafted = sum(lengths) - len(lengths)
    first = sum(min(turns.WINDOW, len(r.token_ids)) for r in before)
    assert engines.costs == {WRITTEN[STUDENT]: redrafted, WRITTEN[TEACHER]: sum(lengths), READ: first + redrafted}
    engines.costs.clear()
    relay(before, engines, k=V, within=10)                            # nothing is rejected, ten tokens are looked at
    assert engines.costs[READ] == sum(min(10, len(r.token_ids)) for r in before) and engines.costs.total() > 40


# ---- what drafts may not change
@pytest.mark.parametrize(("refiner", "params"), [
    (skd, {"k": 8}), (skd, {"k": 8, "decay_tokens": AS_SAID}),
    (skd, {"k": 8, "teacher_temperature": 0.2, "teacher_top_p": 0.5}), (skd, {"k": 0}),
    (relay, {"k": 8, "span": 3, "spans": 2, "within": 12})])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5, "top_p": 0.5}])
def test_the_length_of_drafts_changes_nothing(folder, refiner, params, sampling):
    with Session() as session:
        engines = engines_of(folder, session, **sampling)
        before, told = drafts(engines, PROMPTS * 4), []
        for draft_tokens in (1, 2, 5, 24, 256):
            after = refiner(before, engines, draft_tokens=draft_tokens, **params)
            told.append((what(after), engines.report["accepted_share"], engines.costs.pop(WRITTEN[TEACHER]),
                         pytest.approx([lp for r in after for lp in r.logprobs], abs=1e-9)))
        for *same, logprobs in told[1:]:
            assert same == list(told[0][:-1]) and logprobs == told[0][-1].expected
        assert sum(r.parent is not None for r in after) > 12


@pytest.mark.parametrize(("refiner", "params"), [(skd, {"k": 8}), (relay, {"k": 8, "span": 3})])
def test_a_rollout_does_not_depend_on_its_neighbours(engines, refiner, params):
    before = drafts(engines, PROMPTS * 2)
    together = refiner(before, engines, **params)
    alone = [refiner([r], engines, **params)[0] for r in before]
    engines.spec["engine"]["batch_tokens"] = 80
    small = refiner(before, engines, **params)
    assert what(together) == what(alone) == what(small)


def test_every_token_is_where_its_author_put_it(engines):
    """Student's tokens are in the teacher's top k and have the student's distribution; teacher's have the teacher's."""
    student, teacher, k = engines.student, engines.teacher, 8
    rejected, earlier = 0, [replace(r, policy=["earlier"] * len(r.token_ids)) for r in drafts(engines, PROMPTS * 4)]
    for r in skd(earlier, engines, k=k, draft_tokens=3, teacher_temperature=0.7):
        with torch.no_grad():
            ids, after = torch.tensor([r.prompt_token_ids + r.token_ids]), slice(len(r.prompt_token_ids) - 1, -1)
            ours, theirs = (engine.model(ids).logits[0, after, :V] for engine in (student, teacher))
        for token, author, logprob, own, other in zip(r.token_ids, r.author, r.logprobs, ours, theirs):
            assert author == TEACHER or token in other.topk(k).indices
            expected = sampling_logprobs(own[None]) if author == STUDENT else sampling_logprobs(other[None], 0.7)
            assert logprob == pytest.approx(expected[0, token].item(), abs=1e-9)
            rejected += author == TEACHER
        assert r.finish_reason == ("stop" if r.token_ids[-1] == EOS else "length") and EOS not in r.token_ids[:-1]
        assert len(r.token_ids) == NEW or r.finish_reason == "stop"
        kept = [*r.author, TEACHER].index(TEACHER)     # of the earlier student's draft
        assert r.policy == ["earlier"] * kept + [("student", "teacher")[who == TEACHER] for who in r.author[kept:]]
    assert rejected == engines.costs[WRITTEN[TEACHER]] > 50


# ---- the emitted distribution
def save_tiny(folder, seed):
    """A model of four ids of which 0 ends; opinionated, float64 to the last operation."""
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(vocab_size=4, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6,
                               bos_token_id=None, eos_token_id=0)).save_pretrained(folder)


def emitted(distributions, ks: list[int], block: int, limit: int, prefix: tuple = (), done: int = 0, tokens: int = 0):
    """pi(v) = 1[v in top k] q(v) + (1 - q(top k)) p(v) at each prefix, multiplied out: completion -> probability.

    k is ks[done] in the block after `done` others; a block ends with `block` tokens, or with one of the teacher's.
    """
    if prefix and prefix[-1] == 0 or len(prefix) == limit:
        return {prefix: 1.0}
    student, teacher, drawn = distributions(prefix)
    top = teacher.topk(ks[done]).indices.tolist()
    rest, out = 1 - sum(student[v].item() for v in top), Counter()
    on = (done + 1, 0) if tokens + 1 == block else (done, tokens + 1)
    for v in range(4):
        for share, state in (student[v].item() if v in top else 0.0, on), (rest * drawn[v].item(), (done + 1, 0)):
            for ids, p in emitted(distributions, ks, block, limit, (*prefix, v), *state).items():
                out[ids] += share * p
    return out


@pytest.mark.parametrize(("ks", "draft_tokens", "decay_tokens"), [
    ([0] * 3, 1, AS_SAID), ([1] * 3, 2, AS_SAID), ([2] * 3, 1, AS_SAID), ([2] * 3, 2, AS_SAID), ([2] * 3, 3, AS_SAID),
    ([3] * 3, 2, AS_SAID), ([3, 2, 1], 1, 3), ([3, 2, 1], 2, 3), ([3, 1, 1], 2, 2), ([3, 1, 1], 1, 2)])
def test_the_emitted_law_by_enumeration(tmp_path, monkeypatch, ks, draft_tokens, decay_tokens):
    """All outcomes of three draws of the student's and three of the teacher's, each with its probability.

    In the loop a uniform is made to be the token itself; an outcome's probability is the product of what was drawn on
    the way to what was emitted, and 1/4 for each draw that was not. A k that falls, by ceil(3 / 3) or ceil(3 / 2) a
    block, falls in the rollout as it came too, which is read in parts of 1 and 2 tokens.
    """
    for seed, name in enumerate(("student", "teacher")):
        save_tiny(tmp_path / name / "model", seed)
    limit, warm = 3, {"teacher_temperature": 0.5, "teacher_top_p": 0.9}
    scripts = list(itertools.product(range(4), repeat=2 * limit))
    with Session() as session:
        engines = engines_of(tmp_path, session, max_new_tokens=limit)
        models = [engines.student.model, engines.teacher.model]

        def distributions(prefix):
            with torch.no_grad():
                ours, theirs = (model(torch.tensor([[1, *prefix]])).logits[0, -1] for model in models)
            return ours.softmax(-1), theirs, sampling_logprobs(theirs[None], 0.5, 0.9)[0].exp()
        prefixes = (prefix for n in range(limit) for prefix in itertools.product(range(4), repeat=n))
        table = {prefix: distributions(prefix) for prefix in prefixes}

        raw = [(*s[:limit],) for s in scripts]                        # the first draft: the student's own draws
        raw = [s[:s.index(0) + 1] if 0 in s else s for s in raw]
        before = [replace(rollout(i, [1], list(s)), logprobs=[0.0] * len(s)) for i, s in enumerate(raw)]
        grid = {STUDENT: [s[:limit] for s in scripts], TEACHER: [s[limit:] for s in scripts]}
        order = iter([STUDENT, TEACHER])
        monkeypatch.setattr(turns, "uniforms_of", lambda *_: torch.tensor(grid[next(order)]))
        monkeypatch.setattr(turns, "draw", lambda logprobs, uniforms: uniforms)
        monkeypatch.setattr(turns, "WINDOW", 1)
        after = skd(before, engines, k=ks[0], draft_tokens=draft_tokens, decay_tokens=decay_tokens, **warm)

    mass = Counter()
    for script, new in zip(scripts, after):
        probability = 4.0 ** -(2 * limit)
        for t, author in enumerate(new.author):
            student, _, drawn = table[tuple(new.token_ids[:t])]
            probability *= 4 * student[script[t]].item()
            probability *= 4 * drawn[script[limit + t]].item() if author == TEACHER else 1
        mass[tuple(new.token_ids)] += probability
    expected = emitted(lambda prefix: table[prefix], ks, draft_tokens, limit)
    assert sum(mass.values()) == pytest.approx(1.0, abs=1e-12)
    assert {ids: mass[ids] for ids in expected} == pytest.approx(expected, abs=1e-12)


def test_the_emitted_law_of_the_golden_vectors():
    # student exp[1, .5, -.5, -1], teacher exp[2, -1, .3, .5], top 2 of the teacher = {0, 3}:
    # accepted 0.5089 + 0.0689 = 0.5778; pi = [0.79897272, 0.01444153, 0.05299025, 0.1335955]
    q, z = torch.tensor([1.0, 0.5, -0.5, -1.0]).softmax(-1), torch.tensor([2.0, -1.0, 0.3, 0.5])
    share_of = emitted(lambda prefix: (q, z, z.softmax(-1)), [2], 1, 1)
    assert [share_of[v,] for v in range(4)] == pytest.approx([0.79897272, 0.01444153, 0.05299025, 0.1335955], abs=1e-6)


def test_of_equals_with_the_kth_all_are_accepted(engines):
    head, hidden = engines.teacher.head, torch.zeros(3, 64, dtype=torch.float64)    # without a bias: all logits are 0
    for precise in (head, head.to(torch.float32)):
        inside = in_top_k(head, precise, V, hidden, torch.tensor([3, 59, 60]), torch.ones(3))
        assert inside.tolist() == [True, True, False]
        assert not in_top_k(head, precise, V, hidden[:1], torch.tensor([3]), torch.tensor([0])).any()


def test_a_bfloat16_teacher_ranks_without_rounding(folder, monkeypatch):
    """The token with exactly k likelier ones is out; of the logits in bfloat16 some of those are its equals."""
    k, tables = 8, []
    with Session() as session:
        engines = engines_of(folder, session)
        engines.spec["engine"]["dtype"] = "bfloat16"
        table_of = turns.InterleavedBatch.__init__
        monkeypatch.setattr(turns.InterleavedBatch, "__init__", lambda table, *given: (tables.append(table), table_of(
            table, *given))[1])
        skd(drafts(engines), engines, k=k)
        table, rounded = tables[0], engines.teacher.head
        hidden = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        exact = hidden.double() @ rounded.weight[:V].detach().double().T
        first_out = exact.sort(-1, descending=True).indices[:, k]
        every = torch.full_like(first_out, k)
        heads = rounded, table.ranking, table.size
        assert not in_top_k(*heads, hidden, first_out, every).any()
        assert in_top_k(*heads, hidden, first_out, every + 1).all()
        assert in_top_k(rounded, rounded, V, hidden, first_out, every).sum() > 4
        assert all(engine.head.weight.dtype == torch.bfloat16 for engine in table.engines.values())
        assert table.ranking.weight.dtype == torch.float32


def test_drafts_are_as_long_as_is_cheapest(engines):
    table = turns.InterleavedBatch.__new__(turns.InterleavedBatch)
    table.rule, table.teacher_steps = turns.Rule(k=8, draft_tokens=6, teacher_sampling={}), 1.5

    def length_at(accepted):
        table.counts = {"accepted": accepted, "proposed": 100}
        return table.draft_tokens()
    # at 0.55: 1 / 2.5 = 0.40, 1.55 / 3.5 = 0.443, 1.8525 / 4.5 = 0.412
    assert [length_at(accepted) for accepted in (0, 55, 100)] == [1, 2, 6]
    table.rule = turns.Rule(k=8, draft_tokens=6, teacher_sampling={}, decay_tokens=AS_SAID)
    assert length_at(0) == 6


# ---- decay
def test_k_falls_as_in_the_authors_code(engines):
    table = turns.InterleavedBatch.__new__(turns.InterleavedBatch)
    blocks = torch.tensor([0, 1, 4, 8, 100])

    def k_after(k, decay_tokens):
        table.rule = turns.Rule(k=k, draft_tokens=5, teacher_sampling={}, decay_tokens=decay_tokens)
        return table.k_of(blocks).tolist()
    assert k_after(25, 0) == [25] * 5 and k_after(0, 10) == [0] * 5
    assert k_after(25, 100) == [25, 25, 24, 23, 1]                    # one less every fourth block
    assert k_after(25, 10) == [25, 22, 13, 1, 1]                      # ceil(2.5) = 3 less every block
    before = drafts(engines)
    free, falling = (skd(before, engines, k=30, draft_tokens=1, decay_tokens=d) for d in (0, 15))
    assert sum(r.author.count(TEACHER) for r in falling) > sum(r.author.count(TEACHER) for r in free)


def test_k_falls_within_the_rollout_as_it_came(engines):
    """Its first rejection is of the first token at t whose rank is not below 60 - 2 (t // 4). 24 tokens are read in two
    parts; with k at 60 of 60 none would be rejected."""
    before, teacher, late = drafts(engines, PROMPTS * 8), engines.teacher.model, 0
    for old, new in zip(before, skd(before, engines, k=V, draft_tokens=4, decay_tokens=30)):
        with torch.no_grad():
            logits = teacher(torch.tensor([old.prompt_token_ids + old.token_ids])).logits[0, :, :V]
        logits = logits[len(old.prompt_token_ids) - 1:-1]
        ranks = (logits > logits.gather(-1, torch.tensor(old.token_ids)[:, None])).sum(-1).tolist()
        first = next((t for t, rank in enumerate(ranks) if rank >= 60 - 2 * (t // 4)), None)
        assert (new.author.index(TEACHER) if TEACHER in new.author else None) == first
        late += first is not None and first >= 16
    assert late > 2


# ---- signs of life
def test_progress_is_told_of_every_part_that_is_settled(engines, monkeypatch):
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    monkeypatch.setattr(turns, "WINDOW", 4)
    before, heard = drafts(engines, PROMPTS * 2), []
    engines.session.report = heard.append
    after = skd(before, engines, k=V)                                 # parts of 4, 8 and 12 tokens; no more follows
    longest = max(len(r.token_ids) for r in before)
    assert after == before and longest > 12
    told = [point["tokens"] for point in heard if point["done"] == 0]
    assert told == [sum(min(len(r.token_ids), end) for r in before) for end in (4, 12, 28)]
    heard.clear()
    after = skd(before, engines, k=8)
    assert heard[-1]["tokens"] == sum(len(r.token_ids) for r in after) and heard[-1]["done"] == len(before)
    assert len(heard) > longest / 5                                   # at least once a draft


# ---- relay
def test_the_teacher_writes_spans_early_and_few(engines):
    params = {"k": 8, "span": 3, "spans": 2, "within": 10}
    before = drafts(engines, PROMPTS * 4)
    changed = 0
    for new, old in zip(relay(before, engines, **params), before):
        runs = [(who, [t for t, _ in run]) for who, run in
                itertools.groupby(enumerate(new.author), key=lambda pair: pair[1])]
        spans = [run for who, run in runs if who == TEACHER]
        if not spans:
            assert new is old
            continue
        changed += 1
        assert sum(map(len, spans)) <= 6 and new.rollout_id == f"{old.rollout_id}:relay"
        assert new.token_ids[:spans[0][0]] == old.token_ids[:spans[0][0]]
        assert all(run[0] < 10 + 3 for run in spans)                  # two spans may touch
        assert all(len(run) % 3 == 0 or run[-1] == len(new.token_ids) - 1 for run in spans)
    assert changed > 12


def test_a_relay_of_endless_spans_of_one_token_is_skd(engines):
    before = drafts(engines, PROMPTS * 2)
    ours = relay(before, engines, k=8, span=1, spans=10**6, within=10**6)
    assert [r.token_ids for r in ours] == [r.token_ids for r in skd(before, engines, k=8)]


def test_a_relay_of_an_endless_span_is_the_teachers_continuation(engines):
    before = drafts(engines)
    for new, old in zip(relay(before, engines, k=8, span=NEW, spans=1, within=NEW), before):
        first = new.author.index(TEACHER) if TEACHER in new.author else len(new.author)
        assert new.token_ids[:first] == old.token_ids[:first] and set(new.author[first:]) <= {TEACHER}


# ---- distributions and uniforms
def test_a_nucleus_found_among_a_few_is_that_of_all():
    logits = torch.randn(20, 200, generator=torch.Generator().manual_seed(0)).mul(3).round()  # many equals
    for top_p in (0.1, 0.5, 0.9):
        assert torch.equal(nucleus(logits, top_p, 40), nucleus(logits, top_p, 200))
        kept = nucleus(logits, top_p, 200).isfinite()
        mass = logits.softmax(-1)
        assert ((mass * kept).sum(-1) >= top_p - 1e-6).all()
        least = mass.masked_fill(~kept, math.inf).amin(-1)
        assert ((mass * kept).sum(-1) - least < top_p + 1e-6).all()   # none too many
    assert not torch.equal(nucleus(logits, 0.5), nucleus(logits, 0.9))


def test_uniforms_of_student_and_teacher_differ():
    seeds = [derive_seed(7, 0, "r0", who) for who in ("student drafts", "teacher redraws")]
    assert not torch.equal(*uniforms_of(seeds, 4))


# ---- the slot
def test_a_teacher_behind_a_server_is_refused_with_the_way_out(folder, tmp_path):
    (tmp_path / "teacher" / "model").mkdir(parents=True)
    (tmp_path / "teacher" / "model" / "server.json").write_text("{}")
    (tmp_path / "student").symlink_to(folder / "student")
    with Session() as session, pytest.raises(DataError, match="lies in a folder"):
        skd([], engines_of(tmp_path, session))


def test_they_are_refiners_that_ask_for_the_teacher():
    for name in ("skd", "relay"):
        assert REFINERS[name].function is {"skd": skd, "relay": relay}[name]
        assert REFINERS[name].asks_teacher and "k" in slots.signature("refiner", name)
