"""Red or green in seconds, before a run: the silent mistakes of on-policy distillation, looked for on four prompts.

Most of what goes wrong in such trainers does not crash: masks are off by one, logits are not shifted, engine and
trainer disagree, the teacher speaks another vocabulary. Each check measures something and compares it with a bound.
"""
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from tasks.opd.core.errors import EngineError, OpdError, TokenizerMismatch
from tasks.opd.core.records import STUDENT, Prompt, Rollout, read_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines.api import Signal, Want
from tasks.opd.engines.canary import AGREEMENT
from tasks.opd.models.heads import head_of, load_model
from tasks.opd.models.packing import pack
from tasks.opd.models.weights import num_parameters
from tasks.opd.objective.advantages import ADVANTAGES
from tasks.opd.objective.loss import Stats, coefficients
from tasks.opd.objective.terms import bind_terms, prepare
from tasks.opd.rollouts.filters import first_objection, is_empty
from tasks.opd.rollouts.writers import teacher_role
from tasks.opd.scoring.score import check_finite
from tasks.opd.store.artifacts import model_folder
from tasks.opd.training.alignment import Alignment, measure_alignment
from tasks.opd.training.forward import old_logprobs
from tasks.opd.training.prepass import collect
from tasks.opd.training.read_student import ReadStudent
from tasks.opd.training.round import accumulate
from tasks.opd.training.scored_set import ScoredSet, make_scored

DOUBLE_UP_TO = 20_000_000   # parameters of a model checked in float64
SHIFT_MARGIN = 0.1          # nats a token that alignment must be worth to the teacher; 5 to 11 are usual


class Finding(NamedTuple):
    """One check: what was measured against what bound."""
    check: str
    status: str                    # green, yellow or red
    measured: float | None
    bound: float | None
    message: str


def verdict(check: str, ok: bool, measured: float | None, bound: float | None, message: str,
            bad: str = "red") -> Finding:
    """Green, or else `bad` with the message."""
    return Finding(check=check, status="green" if ok else bad, measured=measured, bound=bound,
                   message="" if ok else message)


def tokenizers_of(inputs: dict[str, Path]) -> dict:
    """Input -> the tokenizer of its model, each folder's read once."""
    from transformers import AutoTokenizer
    folders = {name: model_folder(path) for name, path in inputs.items() if name != "prompts"}
    read = {f: AutoTokenizer.from_pretrained(f, local_files_only=True) for f in set(folders.values())}
    return {name: read[folder] for name, folder in folders.items()}


def check_vocabulary(student, teacher) -> Finding:
    """Two tokenizers name the same tokens by the same ids; TokenizerMismatch names the first that differs."""
    ours, theirs = ({i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (student, teacher))
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise TokenizerMismatch(
                f"token id {i} is {ours.get(i)!r} to the student and {theirs.get(i)!r} to the teacher ({len(ours)} and "
                f"{len(theirs)} tokens): choose a teacher with the student's tokenizer")
    return verdict("vocabulary", True, len(ours), None, "")


def check_template(student, teacher) -> Finding:
    """The chat templates of two tokenizers agree; a difference is yellow."""
    return verdict("template", str(student.chat_template) == str(teacher.chat_template), None, None,
                   "the chat templates of student and teacher differ: the teacher reads the student's rendering",
                   "yellow")


def check_stops(student_stops: set[int], teacher_stops: set[int], terms: list[dict]) -> Finding:
    """Both end their turns with a common token, or special tokens are masked in every term that asks a teacher."""
    masked = all(any(weight.masks_special for weight in term.weights.values()) for term in bind_terms(terms))
    return verdict("stop_tokens", bool(student_stops & teacher_stops) or masked, None, None,
                   f"the student stops at {sorted(student_stops)}, the teacher at {sorted(teacher_stops)}: add "
                   "the weight special_token_mask, or the student unlearns to stop")


def check_masks(rollouts: list[Rollout], shared: bool) -> Finding:
    """Every completion token, EOS included, is predicted at the token before it, at that one's position."""
    packed = pack([r.prompt_token_ids for r in rollouts], [r.token_ids for r in rollouts], shared)
    before = [(len(r.prompt_token_ids) - 1 + t, (r.prompt_token_ids + r.token_ids)[len(r.prompt_token_ids) - 1 + t])
              for r in rollouts for t in range(len(r.token_ids))]
    found = list(zip(packed.positions.flatten()[packed.places].tolist(),
                     packed.token_ids.flatten()[packed.places].tolist()))
    wrong = sum(one != other for one, other in zip(before, found)) + abs(len(before) - len(found))
    return verdict("masks", wrong == 0, wrong, 0,
                   "the loss mask does not cover exactly the completions")


def check_agreement(engine_logprobs: torch.Tensor, trainer_logprobs: torch.Tensor, dtype: str) -> Finding:
    """Engine and trainer give the sampled tokens the same log-probabilities, up to rounding."""
    mean = float((engine_logprobs.double() - trainer_logprobs.double()).abs().mean())
    return verdict("engine_agreement", mean <= AGREEMENT[dtype], mean, AGREEMENT[dtype],
                   f"engine and trainer differ by {mean:.4f} nats a token: stale weights, another template or "
                   "precision")


def check_shift(alignment: Alignment) -> Finding:
    """The teacher's own tokens are likelier to it at their place than one token too early, and than one too late.

    Measured is the smaller of the two differences. It does not depend on the student, near or far.
    """
    early, late = alignment.margins()
    if math.isnan(early + late):
        return verdict("shift", False, None, SHIFT_MARGIN,
                       "all completions of the teacher have one token: nothing to move", "yellow")
    aligned = float(torch.cat(alignment.aligned).double().mean())
    return verdict("shift", min(early, late) >= SHIFT_MARGIN, min(early, late), SHIFT_MARGIN,
                   f"the teacher gives the tokens of its own completions {aligned:.2f} nats each, {early:.2f} more "
                   f"than when it is asked one token too early and {late:.2f} more than one too late; both must be at "
                   f"least {SHIFT_MARGIN}. Below 0: its engine or server gives the log-probabilities of a neighbouring "
                   "token. Near 0: it was never trained, or writes one token over and over, and nothing can be told")


@torch.no_grad()
def own_signal(read: ReadStudent) -> list[Signal]:
    """What the student says of its own rollouts, in the trainer's own arithmetic, as a teacher's signal."""
    tokens, parts = torch.arange(read.columns.num_tokens), []
    for part in read.chunks(len(tokens)):
        student = read.student(read.states[part], tokens[part])
        top = student.full.topk(min(max(read.spec["top_k"], 1), student.full.shape[-1]), -1)
        parts.append((student.sampled, top.indices, top.values, read.states[part], student.entropy))
    columns = [torch.cat(column).cpu().split(read.columns.lengths.tolist()) for column in zip(*parts)]
    return [Signal(sampled=sampled, ids=ids, logprobs=logprobs, hidden=hidden, entropy=entropy)
            for sampled, ids, logprobs, hidden, entropy in zip(*columns)]


def taught_by(signals: list[Signal], read: ReadStudent) -> ScoredSet:
    """The scored set in which every model that a term looks at says the same."""
    spec = read.spec
    names = {name for term in bind_terms(spec["terms"]) for name in term.models.values()}
    head = head_of(read.model, spec["vocabulary"])
    return make_scored([replace(r) for r in read.rollouts], dict.fromkeys(names, signals), dict.fromkeys(names, head),
                       spec["loss"]["temperature"])


def gradient_norm(read: ReadStudent, scored: ScoredSet) -> tuple[float, int]:
    """Norm of the loss's gradient in the hidden states of a scored set, and how many tokens count in it.

    Whatever training would do to the body goes through these; so no gradient of a parameter is made, or kept.
    """
    terms, batch = bind_terms(read.spec["terms"]), list(range(len(read.rollouts)))
    prepared = [prepare(term, own) for term, own in zip(terms, collect(read, terms, scored))]
    coefficient = coefficients(terms, prepared, read.columns, batch, read.spec["completion_limit"])
    learning = read.under(read.spec)
    learning.states = read.states.detach().clone().requires_grad_()
    accumulate(learning, terms, prepared, coefficient, batch, scored, Stats())
    gradient = learning.states.grad
    return 0.0 if gradient is None else float(gradient.double().norm()), int((coefficient != 0).any(0).sum())


def moved_by_one(signals: list[Signal]) -> list[Signal]:
    """Signals whose every token has what stood at the token before, the first what stood at the last."""
    return [Signal(**{name: getattr(s, name).roll(1, 0) for name in
                      ("sampled", "ids", "logprobs", "hidden", "entropy")}) for s in signals]


def check_identity(read: ReadStudent, same: list[Signal]) -> Finding:
    """With the teacher equal to the student the gradient vanishes; with that teacher moved by one token it does not."""
    (norm, _), (other, tokens) = (gradient_norm(read, taught_by(signals, read))
                                  for signals in (same, moved_by_one(same)))
    if not tokens:
        return verdict("identity", False, None, None, "no token of these few, short rollouts counts in any term: "
                       "whether the loss has its minimum where student and teacher agree cannot be told", "yellow")
    bound = 1e-6 if read.states.dtype == torch.float64 else 0.01 * other
    return verdict("identity", norm <= bound < other, norm, bound,
                   f"with teacher = student the gradient is {norm:.3g} (bound {bound:.3g}), with the teacher moved "
                   f"{other:.3g}: the loss does not have its minimum where student and teacher agree")


def check_pull(read: ReadStudent, same: list[Signal]) -> Finding:
    """Every term by itself has a gradient under a teacher who is not the student: the student's own, moved by a token.

    In a sum of terms the others hide one that is identically zero, such as a top-k of one token renormalised. A term
    with all of its positions' divergences cut has no gradient by intent, and one without tokens here cannot be judged.
    """
    scored, norms = taught_by(moved_by_one(same), read), {}
    for index, term in enumerate(read.spec["terms"]):
        norm, tokens = gradient_norm(read.under({**read.spec, "terms": [term]}), scored)
        if tokens and term["clip"]["at"] != "position":
            norms[term["group"] or str(index)] = norm
    dead = [f"terms.{group}" for group, norm in norms.items() if norm == 0]
    return verdict("pull", not dead, min(norms.values(), default=None), 0.0,
                   f"{', '.join(dead)}: the gradient is exactly zero although the teacher is not the student, so "
                   "nothing is learnt there: a support of one token that is renormalised (use renormalise: tail, or a "
                   "larger k), or a target that does not depend on the teacher")


def check_empty(rollouts: list[Rollout], terms: list[dict], filters: list[dict]) -> list[Finding]:
    """No empty completion stays in a group whose mean reward is a baseline; nothing where no term has one."""
    if not any(term["advantage"] and ADVANTAGES[term["advantage"]["name"]].grouped for term in terms):
        return []
    kept = [r for r in rollouts if is_empty(r) and first_objection(r, [], filters) is None]
    return [verdict("empty_completions", not kept, len(kept) / max(len(rollouts), 1), 0.0,
                    f"{len(kept)} of {len(rollouts)} completions are empty: their rewards shift the baseline that the "
                    "others of their prompt are measured against; add malformed to rollout.filters", "yellow")]


def first_rollouts(inputs: dict[str, Path], spec: dict, engine) -> list[Rollout]:
    """Rollouts of the first prompts, with made-up rewards so that rows by success are all exercised."""
    prompts = read_rows(inputs["prompts"] / "prompts.parquet", Prompt)[:spec["num_prompts"]]
    seeds = [derive_seed(spec["seed"], "preflight", p.prompt_id) for p in prompts]
    sampling = {**spec["sampling"], "temperature": spec["sampling"]["temperature"] or 1.0,
                "max_new_tokens": limit_of(spec)}
    done = engine.generate([p.token_ids for p in prompts], sampling, seeds)
    return [Rollout(rollout_id=p.prompt_id, prompt_id=p.prompt_id, group_id=str(i // 2), domain=p.domain, parent=None,
                    prompt_token_ids=p.token_ids, token_ids=c.token_ids, logprobs=c.logprobs,
                    author=[STUDENT] * len(c.token_ids), policy=[""] * len(c.token_ids), teacher_prompt_ids=None,
                    origin="student", finish_reason=c.finish_reason, reward=float(i % 2), feedback=None)
            for i, (p, c) in enumerate(zip(prompts, done))]


def preflight(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: all checks; preflight.json. Raises OpdError (TokenizerMismatch, EngineError, NonFinite) at a red one."""
    folder = model_folder(inputs["student"])
    engine = session.engine("student", folder, spec["engine"])
    rollouts = first_rollouts(inputs, spec, engine)
    terms = spec["terms"]
    taught = [term for term, bound in zip(terms, bind_terms(terms)) if bound.needs_teacher]
    small = num_parameters(folder) <= DOUBLE_UP_TO
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(folder, torch.float64 if small else torch.float32, device).requires_grad_(False)
    spec = {**spec, "train": {"autocast": "off"}, "terms": taught}
    read = ReadStudent(model, rollouts, spec)
    trainer = old_logprobs(read.under({**spec, "loss": {"temperature": 1.0}}),
                           torch.ones(read.columns.num_tokens, dtype=torch.bool))
    own = engine.score([r.prompt_token_ids for r in rollouts], [r.token_ids for r in rollouts], Want())
    findings = [*check_empty(rollouts, terms, spec["filters"]), check_masks(rollouts, read.shared),
                check_agreement(torch.cat([s.sampled for s in own]), trainer, spec["engine"]["dtype"])]
    if taught:
        tokenizers = tokenizers_of(inputs)
        findings += teacher_findings(inputs, spec, session, rollouts, tokenizers)
        for name in tokenizers:
            check_vocabulary(tokenizers["student"], tokenizers[name])
        same = own_signal(read)
        findings += [check_identity(read, same), check_pull(read, same)]
    findings = [f._replace(status="yellow") if f.status == "red" and f.check in spec["accepts"] else f
                for f in findings]
    (out / "preflight.json").write_text(json.dumps([f._asdict() for f in findings], indent=1))
    red = [f for f in findings if f.status == "red"]
    if red:
        error = EngineError if red[0].check == "engine_agreement" else OpdError
        raise error("preflight is red, nothing was trained:\n" + "\n".join(f"  {f.check}: {f.message}" for f in red)
                    + "\nWhat is meant can be declared in the recipe, by name: accepts: {name: why}")
    return {f.check: f.status for f in findings}


def teacher_findings(inputs: dict[str, Path], spec: dict, session, rollouts: list[Rollout],
                     tokenizers: dict) -> list[Finding]:
    """The checks that need the teacher's engine; a self-teacher shares the student's vocabulary by construction."""
    ours, theirs = model_folder(inputs["student"]), model_folder(inputs["teacher"])
    engine = session.engine(teacher_role(inputs["teacher"]), theirs, spec["scoring_engine"])
    pair, prompts = (tokenizers["student"], tokenizers["teacher"]), [r.prompt_token_ids for r in rollouts]
    vocabulary = check_vocabulary(*pair)
    for rollout, signal in zip(rollouts, engine.score(prompts, [r.token_ids for r in rollouts], Want())):
        check_finite(rollout.rollout_id, signal)
    seeds = [derive_seed(spec["seed"], "preflight", "teacher", r.rollout_id) for r in rollouts]
    alignment = measure_alignment(engine, prompts, limit_of(spec), seeds)
    stops = session.engine("student", ours, spec["engine"]).eos_ids
    return [vocabulary, check_template(*pair), check_stops(stops, engine.eos_ids, spec["terms"]),
            check_shift(alignment)]


def limit_of(spec: dict) -> int:
    """Tokens of a completion written for these checks."""
    return min(16, spec["sampling"]["max_new_tokens"])
