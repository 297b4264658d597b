"""A round's first look: every column is what transformers' own logits say it is, however the look is split up."""
import math

import pytest
import torch

from tasks.opd.engines.api import Signal
from tasks.opd.models.heads import head_of, hidden_states
from tasks.opd.objective.columns import columns_of
from tasks.opd.objective.terms import bind_terms, prepare
from tasks.opd.training.forward import Forward
from tasks.opd.training.prepass import collect
from tasks.opd.training.scored_set import make_scored
from tests.tiny_models import random_rollouts, term, tiny_llama, train_spec

LENGTHS = [(3, 5), (2, 9), (4, 1), (3, 2), (1, 7)]                  # rewards 0, 1, 0, 1, 0
STUDENT, TEACHER, START = tiny_llama(1), tiny_llama(2), tiny_llama(3)
ROLLOUTS = random_rollouts(LENGTHS)
TOKENS = torch.tensor([t for r in ROLLOUTS for t in r.token_ids])
SUCCEEDED = torch.tensor([r.reward == 1 for r in ROLLOUTS for _ in r.token_ids])
ALL = torch.ones_like(SUCCEEDED)
TEMPERATURE = 1.3


@torch.no_grad()
def logprobs_of(model, temperature=TEMPERATURE):
    """Of every token of the vocabulary at every token of the rollouts, [N, V], one rollout at a time."""
    found = []
    for r in ROLLOUTS:
        logits = model(torch.tensor([r.prompt_token_ids + r.token_ids])).logits[0, len(r.prompt_token_ids) - 1:-1]
        found.append((logits / temperature).log_softmax(-1))
    return torch.cat(found)


@torch.no_grad()
def signal_of(model, rollout, k, temperature):
    ids = torch.tensor([rollout.prompt_token_ids + rollout.token_ids])
    hidden = hidden_states(model, ids, torch.ones_like(ids))[0, len(rollout.prompt_token_ids) - 1:-1]
    logprobs = head_of(model).logprobs(hidden, temperature)
    top = logprobs.topk(k, -1)
    return Signal(sampled=logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0], ids=top.indices,
                  logprobs=top.values, entropy=-(logprobs.exp() * logprobs).sum(-1), hidden=hidden)


def scored_by(k=4, temperature=TEMPERATURE, without=(), **models):
    """The scored set of models by name; `without`: rollouts of which they say nothing."""
    signals = {name: [None if i in without else signal_of(model, r, k, temperature) for i, r in enumerate(ROLLOUTS)]
               for name, model in models.items()}
    return make_scored(ROLLOUTS, signals, {name: head_of(model) for name, model in models.items()}, temperature)


def look(terms, scored=None, student=STUDENT, **effort):
    """The columns of terms given as specs."""
    spec = train_spec(terms, loss={"temperature": TEMPERATURE})
    spec["effort"] |= effort
    forward = Forward(student, ROLLOUTS, columns_of(ROLLOUTS), spec)
    return collect(forward, bind_terms(terms), scored or scored_by(teacher=TEACHER))


def close(found, expected, mask=ALL):
    """Equal where the mask is, NaN everywhere else."""
    return torch.allclose(found[mask], expected[mask], atol=1e-10) and bool(found[~mask].isnan().all())


S, T, U = logprobs_of(STUDENT), logprobs_of(TEACHER), logprobs_of(START)
FULL = {"divergence": "reverse_kl", "support": "full"}
WRITTEN = torch.arange(len(TOKENS)), TOKENS


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def test_old_and_entropy_are_the_students_and_teacher_and_its_entropy_the_teachers():
    asks = term(advantage="direction", estimator="policy_gradient", weights=["fire"])
    columns, = look([asks])
    assert close(columns.old_logprobs, S[WRITTEN]) and close(columns.teacher, T[WRITTEN])
    assert close(columns.entropy, -(S.exp() * S).sum(-1)) and close(columns.teacher_entropy, -(T.exp() * T).sum(-1))
    assert columns.divergence.isnan().all() and columns.forward_kl.isnan().all() and columns.candidates is None


@pytest.mark.parametrize("clip, expected", [
    ({"at": "none"}, lambda entries: entries.sum(-1)),
    ({"at": "entry", "limit": 0.02}, lambda entries: entries.clamp(max=0.02).sum(-1)),
    ({"at": "position", "limit": 0.3}, lambda entries: entries.sum(-1).clamp(max=0.3))])
def test_the_divergence_is_the_terms_own_with_its_clip(clip, expected):
    columns, = look([term(divergence="forward_kl", support="full", clip=clip, weights=["dash"])])
    assert close(columns.divergence, expected(T.exp() * (T - S)))
    on_four, = look([term(divergence="reverse_kl", support={"name": "teacher_top_k", "k": 4}, weights=["dash"])])
    ids = T.topk(4, -1).indices
    assert close(on_four.divergence, kl(S.gather(1, ids).log_softmax(-1), T.gather(1, ids).log_softmax(-1)))


def test_forward_and_reverse_kl_are_over_the_whole_vocabulary_whatever_the_terms_support():
    narrow = {"name": "teacher_top_k", "k": 2}
    columns, = look([term(divergence="reverse_kl", support=narrow, weights=["keep_confidently_wrong"])])
    assert close(columns.forward_kl, kl(T, S))
    centred, = look([term(advantage="centred_gap", estimator="policy_gradient")])
    assert close(centred.reverse_kl, kl(S, T))


def test_kls_and_teacher_are_to_the_terms_target():
    spec = term(advantage="centred_gap", estimator="policy_gradient", target={"name": "extrapolated", "scale": 1.25})
    spec |= {"models": {"teacher": "teacher", "start": "start"}}
    columns, = look([spec], scored_by(teacher=TEACHER, start=START))
    target = (1.25 * T - 0.25 * U).log_softmax(-1)
    assert close(columns.reverse_kl, kl(S, target))
    assert close(columns.teacher, (1.25 * T - 0.25 * U)[WRITTEN])                   # less a constant of the prefix
    veto, = look([term(advantage="teacher_gap", estimator="policy_gradient", target={"name": "veto", "beta": 0.5})])
    assert close(veto.teacher, (T + 0.5 * S)[WRITTEN])
    region = term(divergence="forward_kl", support="full", target={"name": "trust_region", "share": 0.2},
                  weights=["keep_confidently_wrong"]) | {"models": {"start": "start", "live": "live"}}
    mixed, = look([region], scored_by(start=START, live=TEACHER))
    assert close(mixed.forward_kl, kl((0.8 * U + 0.2 * T).log_softmax(-1), S))


@pytest.mark.parametrize("support, ids", [
    ({"name": "student_top_k", "k": 3}, lambda: S.topk(3, -1).indices),
    ({"name": "teacher_top_k", "k": 3}, lambda: T.topk(3, -1).indices)])
def test_candidates_are_the_supports_with_both_log_probabilities_of_the_full_softmax(support, ids):
    asks = term(advantage="candidate_gap", estimator="candidate_policy_gradient", support=support, rows="succeeded")
    found = look([asks])[0].candidates
    ids = ids()
    assert torch.equal(found.ids[SUCCEEDED], ids[SUCCEEDED]) and (found.ids[~SUCCEEDED] == -1).all()
    assert torch.allclose(found.student[SUCCEEDED], S.gather(1, ids)[SUCCEEDED], atol=1e-10)
    assert torch.allclose(found.target[SUCCEEDED], T.gather(1, ids)[SUCCEEDED], atol=1e-10)
    assert (found.student[~SUCCEEDED] == -math.inf).all() and torch.equal(found.there, found.ids >= 0)


def test_candidates_of_a_union_are_in_either_top_and_absent_ones_minus_infinity():
    asks = term(advantage="candidate_gap", estimator="candidate_policy_gradient", support={"name": "union", "k": 3})
    found = look([asks])[0].candidates
    for i in range(len(TOKENS)):
        either = {*S[i].topk(3).indices.tolist(), *T[i].topk(3).indices.tolist()}
        assert sorted(set(found.ids[i].tolist()) - {-1}) == sorted(either)
    assert ((found.student > -math.inf) == found.there).all() and ((found.target > -math.inf) == found.there).all()
    assert not found.there.all()


SEVERAL = [term(divergence="jsd", support="full", weights=["keep_soft_or", "keep_confidently_wrong"]),
           term(advantage="centred_gap", estimator="policy_gradient", rows="succeeded"),
           term(advantage="candidate_gap", estimator="candidate_policy_gradient", rows="failed",
                support={"name": "intersection", "k": 6}),
           term(divergence="nll")]


def everything(columns):
    found = {name: getattr(columns, name) for name in
             ("old_logprobs", "teacher", "entropy", "teacher_entropy", "divergence", "forward_kl", "reverse_kl")}
    there = columns.candidates
    return found | ({} if there is None else {"ids": there.ids, "student": there.student, "target": there.target})


@pytest.mark.parametrize("micro, chunk", [(1, 1000), (25, 3), (10_000, 1), (12, 23)])
def test_micro_batches_and_chunks_change_no_column(micro, chunk):
    whole, split = look(SEVERAL), look(SEVERAL, micro_batch_tokens=micro, chunk_tokens=chunk)
    for one, two in zip(whole, split):
        for name, values in everything(one).items():
            assert torch.allclose(values.double(), everything(two)[name].double(), atol=1e-12, equal_nan=True), name


def test_terms_beside_each_other_find_what_each_finds_alone_and_nothing_outside_their_own_tokens():
    for spec, beside in zip(SEVERAL, look(SEVERAL)):
        alone, = look([spec])
        for name, values in everything(alone).items():
            assert torch.allclose(values.double(), everything(beside)[name].double(), atol=1e-12, equal_nan=True), name
    gap, candidates = look(SEVERAL)[1:3]
    assert close(gap.reverse_kl, kl(S, T), SUCCEEDED) and close(gap.old_logprobs, S[WRITTEN], SUCCEEDED)
    assert not candidates.candidates.there[SUCCEEDED].any() and candidates.candidates.there[~SUCCEEDED].any()


def test_a_rollout_without_a_signal_is_outside_the_mask_and_spoils_nothing():
    has = torch.tensor([i not in (1, 4) for i, r in enumerate(ROLLOUTS) for _ in r.token_ids])
    scored = scored_by(without=(1, 4), teacher=TEACHER)
    columns, = look([SEVERAL[0]], scored)
    assert torch.equal(columns.mask, has) and columns.has_signal.tolist() == [True, False, True, True, False]
    assert close(columns.forward_kl, kl(T, S), has) and close(columns.teacher, T[WRITTEN], has)
    assert prepare(bind_terms([SEVERAL[0]])[0], columns).weight[~has].eq(0).all()


def test_a_teacher_that_said_nothing_at_all_leaves_the_other_terms_alone():
    silent = scored_by(without=range(5), teacher=TEACHER)
    sampled = term(divergence="nll", weights=["keep_entropy"])
    distilled, other = look([SEVERAL[0], sampled], silent)
    assert not distilled.mask.any() and distilled.forward_kl.isnan().all()
    assert close(other.entropy, -(S.exp() * S).sum(-1))


def test_overlaps_are_those_of_the_k_that_each_weight_asks_for():
    weights = [{"name": "prune_suffix", "k": 9}, {"name": "prune_suffix", "k": 5}]
    columns, other = look([term(divergence="nll", weights=weights, rows="succeeded"), term(**FULL)],
                          scored_by(k=10, teacher=TEACHER))
    assert set(columns.at_k) == {"overlap:5", "overlap:9"} and other.at_k == {}
    for k in (5, 9):
        found = columns.named(f"overlap:{k}")
        ours, theirs = S.topk(k, -1).indices.tolist(), T.topk(k, -1).indices.tolist()
        shares = torch.tensor([len(set(a) & set(b)) / k for a, b in zip(ours, theirs)], dtype=torch.float64)
        assert close(found, shares, SUCCEEDED) and 0 < shares.mean() < 1
    assert columns.named("overlap:3").isnan().all()


def test_reliability_is_the_teachers_mass_on_what_the_student_might_write_times_how_decided_it_is():
    weights = [{"name": "reliable", "k": 3}, {"name": "reliable", "k": 2}]
    columns, = look([term(divergence="nll", weights=weights)], scored_by(teacher=TEACHER))
    for k in (2, 3):
        p = T.exp().gather(-1, S.topk(k, -1).indices)
        own = p / p.sum(-1, keepdim=True)
        expected = p.sum(-1) * (1 + (own * own.log()).sum(-1) / math.log(k))
        assert close(columns.named(f"reliability:{k}"), expected) and 0 < expected.mean() < 1


def test_a_term_without_a_teacher_stands_beside_one_whose_teacher_has_another_name():
    own = term(divergence="reverse_kl", support="full", weights=["dash"]) | {"models": {"teacher": "self"}}
    likely = term(divergence="nll", weights=["dash"]) | {"models": {}}
    first, second = look([own, likely], scored_by(self=TEACHER))
    assert close(first.divergence, kl(S, T)) and close(second.divergence, -S[WRITTEN])


@pytest.mark.parametrize("terms, passes", [
    ([term(divergence="reverse_kl", support="full"), term(divergence="nll", weights=["position"])], 0),
    ([term(divergence="reverse_kl", estimator="k2", weights=["teacher_entropy_above"])], 0),
    ([term(divergence="nll"), term(advantage="teacher_gap", estimator="policy_gradient")], 1),
    ([term(divergence="nll", weights=["keep_entropy"], rows={"name": "succeeded", "threshold": 2.0})], 0)])
def test_the_student_is_only_looked_at_when_a_slot_asks_for_it(terms, passes):
    seen = []
    hook = STUDENT.base_model.register_forward_pre_hook(lambda *_: seen.append(1))
    columns = look(terms)
    hook.remove()
    assert len(seen) == passes
    assert passes or all(c.old_logprobs.isnan().all() and c.entropy.isnan().all() for c in columns)
