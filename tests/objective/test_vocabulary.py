"""Closed forms and passes by rows against autograd over the whole: values and gradients, every divergence and clip."""
import pytest
import torch

from tasks.opd.core.batches import chunk_tokens
from tasks.opd.objective import divergences, vocabulary
from tasks.opd.objective.divergences import DIVERGENCES, mixture, relative
from tasks.opd.objective.loss import Stats, divergence_values
from tasks.opd.objective.supports import SUPPORTS, StudentTokens, TeacherTokens, gathered
from tasks.opd.objective.terms import bind_term
from tasks.opd.objective.vocabulary import LogprobsAt, by_rows, log_normaliser, log_softmax_, row_blocks
from tasks.opd.training.forward import Forward
from tests.tiny_models import term

V, N = 13, 23
CLIPS = [{"at": "none"}, {"at": "entry", "limit": 0.05}, {"at": "position", "limit": 0.9}]
COMPARING = [name for name, entry in DIVERGENCES.items() if not entry.without_teacher]
PLACES = [*((support, "teacher") for support in SUPPORTS), ("full", {"name": "extrapolated", "scale": 1.5}),
          ("full", {"name": "veto", "beta": 0.4})]
DEFINITIONS = {
    "forward_kl": relative, "reverse_kl": lambda t, s: relative(s, t),
    "jsd": lambda t, s: 0.5 * relative(t, mixture(t, s, 0.5)) + 0.5 * relative(s, mixture(t, s, 0.5)),
    "skew_kl": lambda t, s: relative(t, mixture(t, s, 0.1)),
    "skew_reverse_kl": lambda t, s: relative(s, mixture(t, s, 0.9))}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four rows a block, so that the last is a part of one."""
    monkeypatch.setattr(vocabulary, "CACHED", 4 * V + 1)


def draw(seed: int, scale: float = 2.0, dtype=torch.float64) -> torch.Tensor:
    """Logits [N, V]."""
    return scale * torch.randn(N, V, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def teacher_of(logprobs: torch.Tensor) -> TeacherTokens:
    """A teacher whose distributions are at hand, with its 4 likeliest tokens."""
    top = logprobs.topk(4, -1)
    tokens = TeacherTokens(ids=top.indices, logprobs=top.values, num_tokens=N)
    tokens.computed = logprobs
    return tokens


def by_terms(student: torch.Tensor, models: dict, stats: Stats, **spec) -> tuple[torch.Tensor, torch.Tensor]:
    """The term's divergence at each token, and the gradient of the sum of token i's times i + 1 to the logits."""
    logits = student.clone().requires_grad_()
    values = divergence_values(bind_term(term(**spec), "t"), StudentTokens(
        logits=logits, token_ids=torch.arange(N) % V), models, stats)
    return values.detach(), torch.autograd.grad((values * torch.arange(1, N + 1)).sum(), logits)[0]


def by_autograd(student: torch.Tensor, models: dict, stats: Stats, monkeypatch, **spec):
    """The same without closed forms, over all rows at once, through torch's own log_softmax and gather."""
    monkeypatch.setattr(vocabulary, "CACHED", N * V)
    monkeypatch.setattr(divergences, "entries_of", lambda t, s, definition, _: definition(t, s))
    monkeypatch.setattr("tasks.opd.objective.loss.by_rows", lambda logits, _, function: function(
        torch.log_softmax(logits, -1), slice(0, N)))
    monkeypatch.setattr(StudentTokens, "at", lambda self, ids: gathered(torch.log_softmax(self.logits, -1), ids))
    return by_terms(student, models, stats, **spec)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip["at"])
@pytest.mark.parametrize("support, target", PLACES, ids=str)
@pytest.mark.parametrize("divergence", COMPARING)
def test_values_and_gradients_are_those_of_autograd(divergence, support, clip, target, monkeypatch):
    models = {"teacher": teacher_of(draw(1).log_softmax(-1)), "start": teacher_of(draw(2).log_softmax(-1))}
    spec = {"divergence": divergence, "support": support, "clip": clip, "target": target}
    if support == "sampled":
        models["teacher"].sampled = models["teacher"].full.gather(1, (torch.arange(N) % V)[:, None])[:, 0]
    ours, theirs = Stats(), Stats()
    value, gradient = by_terms(draw(0), models, ours, **spec)
    expected, slope = by_autograd(draw(0), models, theirs, monkeypatch, **spec)
    assert torch.allclose(value, expected, rtol=1e-10, atol=1e-12)
    assert (gradient - slope).norm() <= 1e-10 * slope.norm() and (support == "sampled" or slope.norm() > 1e-3)
    assert ours.means() == pytest.approx(theirs.means())


@pytest.mark.parametrize("divergence", DEFINITIONS)
def test_minus_infinity_on_either_side_is_left_to_the_definition(divergence):
    student, teacher = draw(0), draw(1)
    student[3, 2] = teacher[3, 2] = student[5, 1] = teacher[9, 4] = -torch.inf
    teacher = teacher.log_softmax(-1)
    value, gradient = by_terms(student, {"teacher": teacher_of(teacher)}, Stats(), divergence=divergence,
                               support="full")
    leaf = student.clone().requires_grad_()
    expected = DEFINITIONS[divergence](teacher, leaf.log_softmax(-1)).sum(-1)
    slope, = torch.autograd.grad((expected * torch.arange(1, N + 1)).sum(), leaf)
    assert torch.allclose(value, expected) and torch.allclose(gradient, slope, atol=1e-10)
    assert torch.isfinite(gradient).all() and value.isinf().sum() == (divergence in ("forward_kl", "reverse_kl"))


@pytest.mark.parametrize("divergence", DEFINITIONS)
def test_float32_is_as_near_to_float64_as_the_definition_is(divergence):
    student, teacher = (draw(seed, scale=60.0).log_softmax(-1) for seed in (0, 1))  # e^-200 is 0 in float32
    exact = DEFINITIONS[divergence](teacher, student).sum(-1)
    value = DIVERGENCES[divergence](teacher.float(), student.float())
    assert torch.isfinite(value).all() and torch.allclose(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_log_probabilities_at_ids_and_their_gradient():
    logits, ids = draw(0).requires_grad_(), torch.randint(-1, V, (N, 3), generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(-1, 2, N * 3, dtype=torch.float64).view(N, 3)
    def total(values):
        return (torch.where(ids >= 0, values, 0.0) * weights).sum()
    ours = LogprobsAt.apply(logits, ids, log_normaliser(logits))
    theirs = gathered(torch.log_softmax(logits, -1), ids)
    assert torch.equal(ours == -torch.inf, ids < 0) and torch.allclose(ours, theirs)
    assert torch.allclose(*(torch.autograd.grad(total(values), logits)[0] for values in (ours, theirs)), atol=1e-12)


def test_blocks_cover_the_rows_once_and_normalise_in_place():
    logits = draw(0)
    assert [rows.stop - rows.start for rows in row_blocks(logits)] == [4, 4, 4, 4, 4, 3]
    expected = logits.log_softmax(-1)
    assert torch.allclose(log_normaliser(logits), logits.logsumexp(-1, keepdim=True))
    assert log_softmax_(logits) is logits and torch.allclose(logits, expected)


def test_a_second_run_gives_the_same_bits_and_no_more_than_a_gradient_is_kept():
    models = {"teacher": teacher_of(draw(1, dtype=torch.float32).log_softmax(-1))}
    first, second = (by_terms(draw(0, dtype=torch.float32), models, Stats(), divergence="jsd", support="full")
                     for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    logits = draw(0)
    assert not by_rows(logits, log_normaliser(logits), lambda live, rows: live.exp().sum(-1)).requires_grad


def test_a_chunk_holds_no_more_logits_than_allowed_and_no_more_tokens_than_said():
    def sizes(vocabulary, most):
        forward = Forward.__new__(Forward)
        forward.spec = {"vocabulary": vocabulary, "effort": {"chunk_tokens": most}}
        return [part.stop - part.start for part in forward.chunks(1500)]
    # 2^25 logits: at most 682 tokens of 49,152, 220 of 151,936; as equal as can be, so that no row stands alone
    assert sizes(49_152, 1024) == [500] * 3 and set(sizes(151_936, 1024)) <= {214, 215}
    assert sizes(600, 1024) == [750, 750] and sizes(49_152, 512) == [500] * 3
    assert chunk_tokens(1 << 40) == 1
