"""The trainer on real tiny models: invariances of the gradient, exact resume, what stops it, and when."""
import dataclasses
from pathlib import Path

import pytest
import torch

from tasks.opd.core import metrics
from tasks.opd.core.batches import padded_batches
from tasks.opd.core.errors import DataError, NonFinite
from tasks.opd.core.records import Rollout, write_rows
from tasks.opd.engines.api import Signal
from tasks.opd.engines.pool import Session
from tasks.opd.models.heads import head_of, hidden_states
from tasks.opd.objective.columns import columns_of
from tasks.opd.objective.loss import Stats, coefficients
from tasks.opd.objective.terms import bind_terms
from tasks.opd.recipe import loading, requirements
from tasks.opd.store.artifacts import fingerprint_of
from tasks.opd.training.batching import optimizer_batches
from tasks.opd.training.round import accumulate, check_domains, cut, start_round, train_student
from tasks.opd.training.scored_set import make_scored
from tests.tiny_models import (
    prepared,
    random_rollouts,
    rollout,
    term,
    tiny_llama,
    train_spec,
    with_teacher,
    write_tokenizer,
)

LENGTHS = [(3, 5), (2, 9), (4, 1), (3, 2), (1, 7)]
TERMS = {"full": [term(divergence="reverse_kl", support="full")],
         "jsd": [term(divergence={"name": "jsd", "beta": 0.3}, support="full", reduction="sequence")],
         "top_k": [term(divergence="forward_kl", support={"name": "teacher_top_k", "k": 4}, denominator="kept",
                        weights=[{"name": "skip_first", "tokens": 2}])],
         "sampled": [term(advantage="teacher_gap", estimator="policy_gradient")],
         "two": [term(advantage="grpo", estimator={"name": "policy_gradient", "clip_low": 0.2}, denominator="pool"),
                 term(divergence="nll", rows="succeeded", denominator="pool", coefficient=0.5)]}


@torch.no_grad()
def signal_of(model, rollouts, top_k=4):
    """The full signal of a model, computed one rollout at a time without padding: independent of the engine."""
    out = []
    for r in rollouts:
        ids = torch.tensor([r.prompt_token_ids + r.token_ids])
        hidden = hidden_states(model, ids, torch.ones_like(ids))[0, len(r.prompt_token_ids) - 1:-1]
        logprobs = head_of(model).logprobs(hidden)
        top = logprobs.topk(top_k, -1)
        out.append(Signal(sampled=logprobs.gather(1, torch.tensor(r.token_ids)[:, None])[:, 0], ids=top.indices,
                          logprobs=top.values, hidden=hidden, entropy=-(logprobs.exp() * logprobs).sum(-1)))
    return out


def scored_by(model, rollouts):
    return scored_set(rollouts, signal_of(model, rollouts), model)


def scored_set(rollouts, signal, model):
    return make_scored(rollouts, {"teacher": signal}, {"teacher": head_of(model)}, 1.0)


def gradient(student, scored, terms, **effort):
    """The whole optimizer batch's gradient, flat, and the loss."""
    spec = train_spec(terms)
    spec["effort"] |= effort
    bound = bind_terms(terms)
    student.zero_grad()
    forward, took = start_round(student, scored, bound, spec, frozenset({1}))
    everything = list(range(len(scored.rollouts)))
    coefficient = coefficients(bound, took, forward.columns, everything, spec["completion_limit"])
    loss = accumulate(forward, bound, took, coefficient, everything, scored, Stats())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
    return torch.cat([g.flatten() for g in grads]), loss


@pytest.fixture(scope="module")
def pair():
    rollouts = random_rollouts(LENGTHS)
    return tiny_llama(1), tiny_llama(2), rollouts


@pytest.mark.parametrize("name", TERMS)
def test_micro_batches_and_chunks_never_change_the_gradient(pair, name):
    student, teacher, rollouts = pair
    scored = scored_by(teacher, rollouts)
    reference, loss = gradient(student, scored, TERMS[name])
    assert reference.abs().max() > 1e-6
    for micro, chunk in ((1, 1000), (25, 3), (10_000, 1), (10_000, 24), (12, 23)):
        value, other = gradient(student, scored, TERMS[name], micro_batch_tokens=micro, chunk_tokens=chunk)
        assert torch.allclose(value, reference, atol=1e-12) and other == pytest.approx(loss, abs=1e-12)


def test_local_means_would_have_given_another_gradient(pair):
    student, teacher, rollouts = pair
    whole, _ = gradient(student, scored_by(teacher, rollouts), TERMS["full"])
    halves = [gradient(student, scored_by(teacher, part), TERMS["full"])[0] for part in (rollouts[:2], rollouts[2:])]
    assert (sum(halves) / 2 - whole).abs().max() > 1e-4


def test_the_gradient_is_that_of_the_formula_by_autograd(pair):
    student, teacher, rollouts = pair
    value, loss = gradient(student, scored_by(teacher, rollouts), TERMS["full"])
    student.zero_grad()
    total, tokens = 0, sum(len(r.token_ids) for r in rollouts)
    for r in rollouts:                                              # no packing, no chunks, transformers' own logits
        ids = torch.tensor([r.prompt_token_ids + r.token_ids])
        where = slice(len(r.prompt_token_ids) - 1, -1)
        q = student(ids).logits[0, where].log_softmax(-1)
        with torch.no_grad():
            p = teacher(ids).logits[0, where].log_softmax(-1)
        total = total + (q.exp() * (q - p)).sum()
    (total / tokens).backward()
    by_hand = torch.cat([p.grad.flatten() for p in student.parameters()])
    assert torch.allclose(value, by_hand, atol=1e-12) and loss == pytest.approx((total / tokens).item(), abs=1e-12)


@pytest.mark.parametrize("name", ["full", "jsd", "top_k", "sampled"])
def test_teacher_equal_to_student_gives_no_gradient_and_a_shifted_teacher_does(pair, name):
    student, _, rollouts = pair
    signal = signal_of(student, rollouts)
    same = scored_set(rollouts, signal, student)
    value, loss = gradient(student, same, TERMS[name])
    assert value.abs().max() < 1e-12 and abs(loss) < 1e-12
    rolled = [Signal(**{key: getattr(s, key).roll(1, 0) for key in ("sampled", "ids", "logprobs", "hidden")})
              for s in signal]
    moved, _ = gradient(student, scored_set(rollouts, rolled, student), TERMS[name])
    assert moved.norm() > 1e-2


def test_the_teacher_gets_no_gradient(pair):
    student, teacher, rollouts = pair
    teacher.zero_grad()
    gradient(student, scored_by(teacher, rollouts), TERMS["full"])
    assert all(p.grad is None for p in teacher.parameters())


def test_only_the_policys_tokens_train_unless_a_term_says_all():
    from tasks.opd.core.records import DATASET, ENVIRONMENT, STUDENT, TEACHER
    columns = with_teacher([rollout(0, [5], [7, 8, 9, 1], author=[STUDENT, TEACHER, ENVIRONMENT, STUDENT]),
                      rollout(1, [5], [7, 1], author=DATASET)])
    def mask(rows):
        return prepared(bind_terms([term(divergence="nll", rows=rows)])[0], columns).mask.tolist()
    assert mask("sampled") == [True, False, False, True, False, False]
    assert mask("all") == [True, True, False, True, True, True]


def test_batches_partition_and_respect_their_limit():
    batches = optimizer_batches(10, 4, 0, "order", 1)
    assert sorted(sum(batches, [])) == list(range(10)) and [len(b) for b in batches] == [4, 4, 2]
    assert batches == optimizer_batches(10, 4, 0, "order", 1) != optimizer_batches(10, 4, 0, "order", 2)
    lengths = [5, 9, 2, 2, 30]
    micros = padded_batches(lengths, 18)
    assert micros == [[4], [1, 0], [2, 3]]


def checkpoint_inputs(tmp_path: Path, rollouts: list[Rollout]) -> dict[str, Path]:
    """A student artifact and a rollouts artifact on disk."""
    student = tmp_path / "student0"
    (student / "model").mkdir(parents=True)
    tiny_llama(1, dtype=torch.float32).save_pretrained(student / "model")
    write_tokenizer(student / "model")
    (tmp_path / "rollouts0").mkdir()
    write_rows(tmp_path / "rollouts0" / "rollouts.parquet", rollouts, Rollout)
    return {"student": student, "rollouts": tmp_path / "rollouts0"}


def rounds(tmp_path: Path, name: str, inputs, session_of, count=3, **changes):
    """Train `count` rounds; the last checkpoint's weights."""
    from safetensors.torch import load_file
    for r in range(count):
        out = tmp_path / f"{name}{r}"
        out.mkdir()
        spec = train_spec([term(divergence="nll", rows="all")], round=r, rounds=count,
                          train={"learning_rate": 1e-2, "schedule": "cosine", "batch_rollouts": 2}, **changes)
        counts = train_student(inputs, spec, out, session_of(r))
        inputs = {**inputs, "student": out}
    return load_file(out / "model" / "model.safetensors"), counts, out


def test_resuming_from_disk_is_bitwise_the_same_as_going_on(tmp_path):
    inputs = checkpoint_inputs(tmp_path, random_rollouts(LENGTHS))
    session = Session()
    straight, counts, out = rounds(tmp_path, "straight", inputs, lambda r: session, ema_decay=0.9)
    resumed, again, other = rounds(tmp_path, "resumed", inputs, lambda r: Session(), ema_decay=0.9)
    assert counts == again and counts["steps"] == 3 and counts["step"] == 9
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    for file in ("ema/model.safetensors", "trainer.safetensors", "trainer.json", "tokens.parquet"):
        assert (out / file).read_bytes() == (other / file).read_bytes()


def test_the_moving_average_follows_its_formula(tmp_path):
    from safetensors.torch import load_file
    inputs = checkpoint_inputs(tmp_path, random_rollouts(LENGTHS[:2]))
    start = load_file(inputs["student"] / "model" / "model.safetensors")
    weights, _, out = rounds(tmp_path, "one", inputs, lambda r: Session(), count=1, ema_decay=0.75)
    average = load_file(out / "ema" / "model.safetensors")
    for key in weights:                                            # one step: .75 start + .25 weights
        assert torch.allclose(average[key], 0.75 * start[key] + 0.25 * weights[key], atol=1e-7)


def test_a_checkpoint_opens_with_its_tokenizer(tmp_path):
    from transformers import AutoTokenizer
    inputs = checkpoint_inputs(tmp_path, random_rollouts(LENGTHS))
    _, _, out = rounds(tmp_path, "r", inputs, lambda r: Session(), count=1)
    assert AutoTokenizer.from_pretrained(out / "model").eos_token == "<eos>"


def test_a_nan_stops_training_before_the_step_and_names_the_rollouts(pair):
    student, teacher, rollouts = pair
    signal = signal_of(teacher, rollouts)
    signal[1].sampled[0] = torch.nan
    bad = scored_set(rollouts, signal, teacher)
    with pytest.raises(NonFinite, match="r1"):
        gradient(student, bad, TERMS["sampled"], micro_batch_tokens=1)


def test_clipped_share_and_position_gaps_are_reported(pair):
    student, teacher, rollouts = pair
    spec = train_spec([term(divergence="forward_kl", support="full", clip={"at": "entry", "limit": 0.05})])
    bound, stats = bind_terms(spec["terms"]), Stats()
    forward, took = start_round(student, scored_by(teacher, rollouts), bound, spec, frozenset())
    coefficient = coefficients(bound, took, forward.columns, [0, 1, 2, 3, 4], 16)
    accumulate(forward, bound, took, coefficient, [0, 1, 2, 3, 4], scored_by(teacher, rollouts), stats)
    means = stats.means()
    assert 0 < means["forward_kl/clipped_token_share"] <= 1
    assert means["forward_kl/clipped_entries_per_token"] >= means["forward_kl/clipped_token_share"]


def test_the_ppo_ratio_is_exactly_one_at_the_rounds_start(pair):
    student, teacher, rollouts = pair
    scored = scored_by(teacher, rollouts)
    clipped = [term(advantage="teacher_gap", estimator={"name": "policy_gradient", "clip_low": 0.2})]
    plain, _ = gradient(student, scored, TERMS["sampled"])
    assert torch.equal(gradient(student, scored, clipped)[0], plain)


def test_signals_of_rollouts_without_one_are_laid_flat_as_zeros(pair):
    _, teacher, rollouts = pair
    signal = signal_of(teacher, rollouts)
    signal[2] = None
    scored = scored_set(rollouts, signal, teacher)
    assert scored.flat["teacher"]["hidden"].shape[0] == sum(len(r.token_ids) for r in rollouts)
    assert scored.has_signal("teacher").tolist() == [True, True, False, True, True]
    assert scored.flat["teacher"]["sampled"][14] == 0 and torch.isnan(scored.column("teacher", "sampled")[14])
    assert fingerprint_of(Path("x/.tmp-abc-123")) == "abc" == fingerprint_of(Path("x/abc"))


def toy_rounds():
    """Group a (domain four): lengths 2 and 1; group b (domain five): length 4; all rewarded."""
    rows = [rollout(0, [5], [7, 1], group="a"), rollout(1, [5], [1], group="a"),
            rollout(2, [6], [8, 9, 9, 1], group="b")]
    rows = [dataclasses.replace(r, domain=domain) for r, domain in zip(rows, ("four", "four", "five"))]
    return with_teacher(rows, teacher=[torch.zeros(len(r.token_ids)) for r in rows], old_logprobs=torch.zeros(7))


def coefficients_of(specs, columns=None, left=None):
    columns, bound = columns or toy_rounds(), bind_terms(specs)
    took, everything = [prepared(t, columns) for t in bound], list(range(columns.num_rollouts))
    if left is not None:
        took = cut(took, columns, everything, left)
    return coefficients(bound, took, columns, everything, 10)


def specs_of(variant, *overrides):
    return requirements.terms_of(loading.load(variant, overrides))


REDUCTIONS = {"token": [1 / 7] * 7, "sequence": [1 / 6, 1 / 6, 1 / 3, *[1 / 12] * 4],
              "prompt": [*[1 / 6] * 3, *[1 / 8] * 4], "sum": [1] * 7, "constant": [1 / 30] * 7,
              "rollout_sum": [1 / 2] * 7}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_parts_of_a_routed_term_share_one_denominator(reduction):
    four, five = coefficients_of(specs_of("routed_teachers", f"terms.0.reduction={reduction}"))
    assert four.tolist() == pytest.approx([*REDUCTIONS[reduction][:3], 0, 0, 0, 0])
    assert five.tolist() == pytest.approx([0, 0, 0, *REDUCTIONS[reduction][3:]])


@pytest.mark.parametrize("denominator", ["valid", "kept", "weighted", "pool"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("model", ["routed", "mixed"])
def test_parts_add_up_to_the_term_of_a_single_teacher(model, reduction, denominator):
    beside = "{divergence: nll, denominator: pool, rows: all}"
    term = f"{{advantage: teacher_gap, estimator: policy_gradient, coefficient: 3, weights: [{{name: skip_first, " \
           f"tokens: 1}}], reduction: {reduction}, denominator: {denominator}}}"
    parts, whole = (coefficients_of(specs_of("opd_reverse_kl", f"terms=[{term}, {beside}]", f"teacher.model={who}"))
                    for who in (model, "teacher"))
    assert torch.allclose(parts[:2].sum(0), whole[0], atol=1e-12) and torch.allclose(parts[2], whole[1], atol=1e-12)
    if model == "mixed":
        assert torch.equal(parts[0], parts[1])


def by_models(rollouts, **models):
    return make_scored(rollouts, {name: signal_of(model, rollouts) for name, model in models.items()},
                       {name: head_of(model) for name, model in models.items()}, 1.0)


def test_routed_and_mixed_gradients_are_those_of_their_experts(pair):
    student, teacher, rollouts = pair
    other = tiny_llama(3)                                          # 1e-7: Llama's norms are in float32
    rows = [dataclasses.replace(r, domain=("four", "five")[i % 2]) for i, r in enumerate(rollouts)]
    scored = by_models(rows, expert_four=teacher, expert_five=other)
    one, two = (gradient(student, scored_by(model, rows), TERMS["full"])[0] for model in (teacher, other))
    mixed, _ = gradient(student, scored, specs_of("mixed_teachers"))
    assert torch.allclose(mixed, (one + two) / 2, atol=1e-7) and (one - two).abs().max() > 1e-3
    full = "terms=[{divergence: reverse_kl, support: full}]"
    routed, _ = gradient(student, scored, specs_of("routed_teachers", full))
    parts = [gradient(student, scored_by(model, rows), [TERMS["full"][0] | {"domain": domain, "group": "0"}])
             for model, domain in ((teacher, "four"), (other, "five"))]
    tokens = [sum(len(r.token_ids) for r in rows if r.domain == domain) for domain in ("four", "five")]
    by_hand = sum(g * n for (g, _), n in zip(parts, tokens)) / sum(tokens)
    assert torch.allclose(routed, by_hand, atol=1e-7)
    same, _ = gradient(student, by_models(rows, expert_four=teacher, expert_five=teacher),
                       specs_of("routed_teachers", full))
    assert torch.allclose(same, one, atol=1e-7)


def test_a_rollout_of_a_domain_without_an_expert_is_refused_rather_than_left_out(pair):
    rows = [dataclasses.replace(r, domain=("four", "six")[i % 2]) for i, r in enumerate(pair[2])]
    terms = bind_terms(specs_of("routed_teachers"))
    with pytest.raises(DataError, match="no expert teaches domain 'six', only five, four have one"):
        check_domains(terms, columns_of(rows))
    check_domains(terms, columns_of([r for r in rows if r.domain == "four"]))


def test_a_term_without_a_teacher_trains_beside_one_whose_teacher_has_another_name(pair):
    student, teacher, rollouts = pair
    likely = TERMS["two"][1] | {"denominator": "valid", "coefficient": 1.0, "models": {}}
    both, _ = gradient(student, by_models(rollouts, self=teacher),
                       [TERMS["full"][0] | {"models": {"teacher": "self"}}, likely])
    parts = [gradient(student, scored_by(teacher, rollouts), [spec])[0] for spec in (TERMS["full"][0], likely)]
    assert torch.allclose(both, sum(parts), atol=1e-7)


@pytest.mark.parametrize("left", [1, 2, 3, 5, 6, 7, 100])
def test_the_cut_batch_keeps_its_first_tokens_and_its_coefficients_still_sum_to_one(left):
    for spec in ({}, {"reduction": "sequence"}, {"reduction": "prompt"}):
        found = coefficients_of([term(divergence="forward_kl", support="full", **spec)], left=left)[0]
        assert found.sum().item() == pytest.approx(1) and (found != 0).tolist() == [i < left for i in range(7)]
    skip = {"divergence": "forward_kl", "support": "full", "weights": [{"name": "skip_first", "tokens": 1}]}
    for denominator in ("kept", "weighted"):                             # keeps tokens 1, 4, 5, 6
        found = coefficients_of([term(**skip, denominator=denominator)], left=left)[0]
        assert found.sum().item() == pytest.approx(1)
        assert (found != 0).tolist() == [i in [1, 4, 5, 6][:left] for i in range(7)]
    first, second = coefficients_of([term(**skip), term(divergence="nll")], left=left)   # a token counts once
    assert ((first != 0) | (second != 0)).tolist() == [i < left for i in range(7)]


@pytest.mark.parametrize("budget, seen, steps", [   # the second round's batches have 16, 7 and 1 tokens
    (1, [1, 1, 1], [1, 0, 0]), (24, [24, 24, 24], [3, 0, 0]), (40, [24, 40, 40], [3, 1, 0]),
    (42, [24, 42, 42], [3, 2, 0]), (72, [24, 48, 72], [3, 3, 3]), (1000, [24, 48, 72], [3, 3, 3])])
def test_a_token_budget_is_met_exactly_over_rounds_and_batches(tmp_path, budget, seen, steps):
    inputs, found = checkpoint_inputs(tmp_path, random_rollouts(LENGTHS)), []       # 24 tokens a round
    before = None
    for r in range(3):
        out = tmp_path / f"r{r}"
        out.mkdir()
        spec = train_spec([term(divergence="nll", rows="all")], round=r, rounds=3,
                          trained_tokens=budget, train={"batch_rollouts": 2})
        found.append(train_student(inputs, spec, out, Session()))
        inputs = {**inputs, "student": out}
        weights = (out / "model" / "model.safetensors").read_bytes()
        assert found[-1]["steps"] or weights == before                              # nothing left: nothing learnt
        before = weights
    assert [c["tokens_seen"] for c in found] == seen
    assert sum(c["trained_tokens"] for c in found) == min(budget, 72)
    assert [c["steps"] for c in found] == steps


@pytest.mark.parametrize("num_rounds", [3, 250])
def test_a_schedule_runs_over_the_token_budget_whatever_the_number_of_rounds(tmp_path, num_rounds):
    inputs, rates = checkpoint_inputs(tmp_path, random_rollouts(LENGTHS)), []       # 24 tokens a round
    for r in range(2):
        out = tmp_path / f"r{r}"
        out.mkdir()
        spec = train_spec([term(divergence="nll", rows="all")], round=r, rounds=num_rounds,
                          train={"learning_rate": 1e-3, "schedule": "linear"}, trained_tokens=40)
        train_student(inputs, spec, out, Session())
        inputs = {**inputs, "student": out}
        rates += [p["value"] for p in metrics.read(out / metrics.FILE) if p["key"] == "train/learning_rate"]
    assert rates == pytest.approx([1e-3, 1e-3 * (1 - 24 / 40)])
