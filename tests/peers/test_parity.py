"""Parity with code that others wrote: the loss that training takes, and its gradient to the student's logits.

The peers are the extra `parity`. Without them these tests are skipped, except in continuous integration, which sets
OPD_CI: there they fail. A peer that works in float64 has to agree to 1e-10, one that works in float32 to 1e-6.
"""
import importlib
import math
import operator
import os
from types import SimpleNamespace

import pytest
import torch

from tasks.opd.models.heads import Head
from tasks.opd.objective.loss import Stats, chunk_loss, coefficients
from tasks.opd.objective.supports import StudentTokens, TeacherTokens
from tasks.opd.objective.terms import bind_terms, prepare
from tasks.opd.training.trainer import update_average
from tests.column_fixtures import columns
from tests.tiny_models import term

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")

R, T, V = 3, 6, 11
GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 3 * torch.randn(2, R, T, V, generator=GENERATOR, dtype=torch.float64)
OLD = -2 * torch.rand(R, T, generator=GENERATOR, dtype=torch.float64)
WRITTEN = torch.randint(V, (R, T), generator=GENERATOR)
EVERY = torch.ones(R, T, dtype=torch.bool)
SOME = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
HEAD = Head(weight=torch.eye(V, dtype=torch.float64), bias=None, scale=1.0, softcap=None, num_valid=V)

masks = pytest.mark.parametrize("mask", [EVERY, SOME], ids=["unmasked", "masked"])
betas = pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
packages = pytest.mark.parametrize("package", ["sdft", "sdpo"])
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0])


def peer(module: str, name: str):
    """What stands under a dotted name in a peer's module."""
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ModuleNotFoundError, AttributeError) as error:
        if "OPD_CI" in os.environ:
            raise
        pytest.skip(f"the extra parity is not installed as pinned: {error}")


def of_beta(beta: float):
    """The divergence that the peers call beta, or alpha."""
    return {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, {"name": "jsd", "beta": beta})


def trained(logits: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0, batch=(0, 1, 2), **slots):
    """The loss of a term over logits [R, T, V], as training takes it; of a batch's part when logits are of its rows."""
    bound = bind_terms([term(**slots)])
    seen = columns([T] * R, mask=mask.flatten().tolist(), token_ids=WRITTEN.flatten(), old_logprobs=OLD.flatten(),
                   teacher=TEACHER.log_softmax(-1).gather(-1, WRITTEN[..., None]).flatten())
    prepared = [prepare(t, seen) for t in bound]
    coefficient = coefficients(bound, prepared, seen, list(range(R)), T)
    flat = torch.isin(seen.rollout, torch.tensor(batch)).nonzero()[:, 0]
    student = StudentTokens(logits=logits.flatten(0, 1) / temperature, token_ids=seen.token_ids[flat])
    teacher = TeacherTokens(sampled=seen.teacher[flat], hidden=TEACHER.flatten(0, 1)[flat], head=HEAD,
                            temperature=temperature, num_tokens=len(flat))
    return chunk_loss(bound, prepared, coefficient[:, flat], flat, student, {"teacher": teacher}, Stats())


def assert_same(ours, theirs, *, value=1e-10, gradient=1e-10):
    """Two functions of the student's logits have the same value and the same gradient."""
    found = []
    for function in (ours, theirs):
        logits = STUDENT.clone().requires_grad_()
        result = function(logits)
        result.backward()
        found.append((result.item(), logits.grad))
    (one, own), (other, foreign) = found
    assert own.abs().max() > 1e-3 and abs(one) > 1e-3       # nothing is compared with nothing
    assert one == pytest.approx(other, rel=0, abs=value)
    assert torch.allclose(own, foreign, rtol=0, atol=gradient)


@masks
@betas
@temperatures
def test_gkd(beta, mask, temperature):
    loss = peer("trl.experimental.gkd", "GKDTrainer.generalized_jsd_loss")
    assert_same(lambda z: trained(z, mask, temperature=temperature, divergence=of_beta(beta), support="full"),
                lambda z: loss(z, TEACHER, labels=torch.where(mask, 0, -100), beta=beta, temperature=temperature))


@masks
def test_gkd_over_two_micro_batches_of_one_optimizer_batch(mask):
    loss, count = peer("trl.experimental.gkd", "GKDTrainer.generalized_jsd_loss"), mask.sum()
    labels, parts = torch.where(mask, 0, -100), (slice(0, 1), slice(1, 3))
    slots = {"divergence": of_beta(0.3), "support": "full"}
    assert_same(lambda z: sum(trained(z[p], mask, batch=range(R)[p], **slots) for p in parts),
                lambda z: sum(loss(z[p], TEACHER[p], labels[p], beta=0.3, num_items_in_batch=count) for p in parts))


@masks
@betas
@temperatures
def test_the_chunked_divergence_of_trl(beta, mask, temperature):
    loss, head = peer("trl.trainer.distillation_trainer", "_chunked_divergence_loss"), torch.eye(V).double()
    assert_same(lambda z: trained(z, mask, temperature=temperature, divergence=of_beta(beta), support="full"),
                lambda z: loss(z, TEACHER, head, head, mask, beta, temperature=temperature)[0],
                value=1e-6, gradient=1e-6)                  # float32 inside, whatever comes in


@masks
@betas
@temperatures
def test_the_chunked_jsd_of_liger(beta, mask, temperature):
    loss = peer("liger_kernel.chunked_loss", "LigerFusedLinearJSDLoss")(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=temperature, compiled=False, chunk_size=4)
    head, labels = torch.eye(V).double(), torch.where(mask, WRITTEN, -100).flatten()
    assert_same(lambda z: trained(z, mask, temperature=temperature, divergence=of_beta(beta), support="full"),
                lambda z: loss(z.flatten(0, 1), head, TEACHER.flatten(0, 1), head, labels),
                value=1e-6)                                 # it adds its chunks up in float32


@packages
@masks
@betas
def test_full_vocabulary_of_sdft_and_sdpo(package, beta, mask):
    loss = peer(f"trl.experimental.{package}.loss_utils", "compute_full_logit_self_distillation_loss")
    assert_same(lambda z: trained(z, mask, divergence=of_beta(beta), support="full", reduction="sum"),
                lambda z: loss(z, TEACHER, distillation_alpha=beta)[mask].sum())


@packages
@masks
@betas
@pytest.mark.parametrize("renormalise", ["both", "tail"])
def test_top_k_of_sdft_and_sdpo(package, beta, mask, renormalise):
    loss = peer(f"trl.experimental.{package}.loss_utils", "compute_topk_self_distillation_loss")
    support = {"name": "student_top_k", "k": 4, "renormalise": renormalise}
    assert_same(lambda z: trained(z, mask, divergence=of_beta(beta), support=support, reduction="sum"),
                lambda z: loss(z, TEACHER, distillation_topk=4, distillation_alpha=beta,
                               distillation_add_tail=renormalise == "tail")[mask].sum())


@masks
def test_mean_over_completions_with_a_capped_ratio_of_sdpo(mask):
    module = "trl.experimental.sdpo.loss_utils"
    loss = peer(module, "compute_full_logit_self_distillation_loss")
    cap = peer(module, "apply_importance_sampling_clipping")
    slots = {"divergence": "jsd", "support": "full", "estimator": {"name": "exact", "ratio_cap": 1.5}}

    def theirs(z):
        live = z.log_softmax(-1).gather(-1, WRITTEN[..., None])[..., 0]
        values = cap(loss(z, TEACHER, distillation_alpha=0.5), live, OLD, 1.5) * mask
        return (values.sum(-1) / mask.sum(-1)).mean()       # as SDPOTrainer does, for completions with a token
    assert_same(lambda z: trained(z, mask, reduction="sequence", **slots), theirs)


@packages
@masks
def test_the_sampled_token_form_has_the_gradient_of_k2(package, mask):
    # theirs is detach(live - teacher) * live, k2 is (live - teacher)^2 / 2: different values, one gradient
    loss = peer(f"trl.experimental.{package}.loss_utils", "compute_sampled_token_self_distillation_loss")
    assert_same(lambda z: trained(z, mask, divergence="reverse_kl", estimator="k2", reduction="sum"),
                lambda z: loss(z, TEACHER, WRITTEN, distillation_alpha=1.0)[mask].sum(), value=math.inf)


def test_the_moving_average_of_sdft_and_sdpo():
    update = peer("trl.experimental.sdpo.teacher_sync", "SyncTeacherModelCallback._sync_target_model")
    torch.manual_seed(0)
    student, start = torch.nn.Linear(5, 7).double(), torch.nn.Linear(5, 7).double()
    average = {name: value.detach().clone() for name, value in start.named_parameters()}
    for _ in range(3):
        update(student, start, 0.05)
        update_average(SimpleNamespace(model=student, average=average), 0.95)
    assert all(torch.allclose(average[name], value, rtol=0, atol=1e-12) for name, value in start.named_parameters())
