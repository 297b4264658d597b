"""Whether a round's signal can be trusted: the same numbers for every variant, over the round and by position.

Everything is seen once, as training sees it: in the first pass over the tokens that are trained on, without a forward
of its own. Whole distributions are compared at a part of the tokens only, chosen by hash: the comparison costs more
than a loss does. Models and tokens are those of the first term that asks a teacher, all its domains, of a mixture its
first model; where none does, those of the first term, without what needs a teacher. Tokens to which that term's rows
and weights give nothing are not seen: numbers of variants that choose tokens otherwise are of other tokens.

Over the round, as `trust/<quantity>`, means over tokens:

    teacher_gap_mean_nats, _std_nats    log teacher - log student of the token written; minus the sampled reverse KL
    teacher_gap_negative_share          tokens that the teacher likes less than the student
    teacher_gap_top1_share              part of sum |gap| that 1 % of the tokens hold
    teacher_perplexity                  exp(-mean log teacher) of a rollout, mean over rollouts
    student_entropy_nats, teacher_entropy_nats, reverse_kl_nats      of whole distributions
    overlap@16, shared_mass@16          share of the student's 16 likeliest tokens that are among the teacher's; the
                                        student's probability of these
    margin_nats                         over the student's 16: the teacher's largest log-probability - their mean
    sampler_kl_nats                     KL(sampler || trainer), k3 estimate, before the first step
    horizon_tokens                      see `positions.signal_horizon`, of the gap
    group_solved_share, group_all_right_share    prompts with a success of the student's; with nothing else

By position, as `position/<quantity>/<first position of the bucket>`: teacher_gap_nats and teacher_gap_std_nats,
advantage and advantage_std, teacher_perplexity (of the bucket's tokens), the entropies, reverse_kl_nats, overlap@16,
shared_mass@16, margin_nats; gradient_share, the bucket's part of the sum of the gradient's norms at hidden states;
tokens, which were trained on; rollouts, which are that long, without which no mean of survivors can be read.
Sources: Rethinking OPD, arXiv:2604.13016 (overlap, mass); Revisiting OPD, arXiv:2603.25562 (share of the largest);
SCOPE, arXiv:2604.10688 (perplexity); Prefix Teach, arXiv:2605.13643 (margin, reconstructed).
"""
from collections import defaultdict

import torch
from torch import Tensor

from tasks.opd.core.records import STUDENT
from tasks.opd.objective.columns import Columns
from tasks.opd.objective.divergences import relative
from tasks.opd.objective.positions import STARTS, moments_of, signal_horizon
from tasks.opd.objective.rows import sampled
from tasks.opd.objective.supports import StudentTokens, TeacherTokens, entropy_of
from tasks.opd.objective.terms import Prepared, Term, largest_share
from tasks.opd.training.scored_set import ScoredSet

K = 16                                  # of overlap, shared mass and margin
LEAST, SHARE, MOST = 256, 1 / 8, 4096   # tokens of a round whose whole distributions are compared
OF_DISTRIBUTIONS = ("student_entropy_nats", "teacher_entropy_nats", "reverse_kl_nats", f"overlap@{K}",
                    f"shared_mass@{K}", "margin_nats")


class Diagnostics:
    """What was seen of a round: by quantity, values [n] of tokens `flat` [n], part by part."""

    def __init__(self, terms: list[Term], columns: Columns, scored: ScoredSet):
        self.lead = next((term for term in terms if term.needs_teacher and term.models), terms[0])
        self.columns, self.scored, self.moved = columns, scored, False
        self.own = torch.tensor([rollout.parent is None for rollout in scored.rollouts])
        self.closely = chosen_tokens(columns.num_tokens)
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def note(self, name: str, flat: Tensor, values: Tensor) -> None:
        """Add values [n] of tokens `flat` [n]."""
        self.seen[name].append((flat, values.detach().double().cpu()))

    def look(self, term: Term, prepared: Prepared, flat: Tensor, student: StudentTokens,
             models: dict[str, TeacherTokens]) -> None:
        """See a chunk of a term's tokens, `flat` [n], with what student and models say there."""
        if term.group != self.lead.group or term.share < 1 and term is not self.lead:
            return
        main = models[next(iter(term.models.values()))] if term.models and term.needs_teacher else None
        self.note("student", flat, student.sampled)
        if main is not None and main.sampled is not None:
            self.note("gap", flat, main.sampled - student.sampled)
            self.note("teacher", flat, main.sampled)
        if prepared.advantage is not None and prepared.advantage.ndim == 1:
            self.note("advantage", flat, prepared.advantage[flat])
        if not self.moved:
            self.note("sampler_kl", flat, self.sampler_kl(flat, student))
        some = self.closely[flat].nonzero()[:, 0]
        if some.numel():
            there = some.to(student.logits.device)
            values = compared(student.detached().select(there), main.select(there) if main is not None else None)
            for name, value in values.items():
                self.note(name, flat[some], value)

    def sampler_kl(self, flat: Tensor, student: StudentTokens) -> Tensor:
        """k3 of KL(sampler || trainer) at tokens the student wrote: exp(-d) - 1 + d, d = sampler - trainer. [n] nats.

        NaN at tokens of others, and of rollouts that a refiner made. Source: Schulman 2020.
        """
        columns = self.columns
        gap = columns.sampler_logprobs[flat].double() - student.sampled.detach().double().cpu()
        written = self.own[columns.rollout[flat]] & (columns.author[flat] == STUDENT)
        return torch.where(written, torch.exp(-gap) - 1 + gap, torch.nan)

    def values(self) -> dict[str, float]:
        """The metrics of what was seen; none of what was not, but for the groups."""
        found = {name: (torch.cat([flat for flat, _ in parts]), torch.cat([values for _, values in parts]))
                 for name, parts in self.seen.items()}
        of_groups = {f"trust/{name}": value for name, value in self.of_groups().items()}
        if "student" not in found:  # none of the lead's tokens was trained on, whatever other terms did
            return of_groups
        self.add_signalled_entropy(found)
        return of_groups | {f"trust/{name}": value for name, value in self.of_round(found).items()} | {
            f"position/{name}/{STARTS[bucket]}": value for name, by_bucket in self.by_position(found).items()
            for bucket, value in by_bucket.items()}

    def add_signalled_entropy(self, found: dict) -> None:
        """The teacher's entropy as it was scored, where no whole distribution was compared."""
        name = next(iter(self.lead.models.values()), "")
        if "teacher_entropy_nats" not in found and "entropy" in self.scored.flat.get(name, {}) and "teacher" in found:
            flat = found["teacher"][0]
            found["teacher_entropy_nats"] = flat, self.scored.column(name, "entropy")[flat].double()

    def of_round(self, found: dict) -> dict[str, float]:
        """Numbers over all tokens seen."""
        finite = {name: values[values.isfinite()] for name, (_, values) in found.items()}
        out = {name: float(finite[name].mean()) for name in OF_DISTRIBUTIONS if name in found and finite[name].numel()}
        if "gap" in found:
            flat, gap = found["gap"]
            out |= {"teacher_gap_mean_nats": float(gap.mean()), "teacher_gap_std_nats": float(gap.std(correction=0)),
                    "teacher_gap_negative_share": float((gap < 0).double().mean()),
                    "teacher_gap_top1_share": largest_share(gap),
                    "horizon_tokens": signal_horizon(moments_of(self.columns.position[flat], gap)),
                    "teacher_perplexity": self.perplexity(*found["teacher"])}
        if "sampler_kl" in found and finite["sampler_kl"].numel():
            out["sampler_kl_nats"] = float(finite["sampler_kl"].mean())
        return out

    def perplexity(self, flat: Tensor, logprobs: Tensor) -> float:
        """exp(-mean log-probability) of each rollout's tokens, mean over rollouts."""
        rollout = self.columns.rollout[flat]
        count, total = (torch.zeros(self.columns.num_rollouts, dtype=torch.float64).index_add_(0, rollout, values)
                        for values in (torch.ones_like(logprobs), logprobs))
        return float((-total[count > 0] / count[count > 0]).exp().mean())

    def of_groups(self) -> dict[str, float]:
        """Shares of the groups, of what the student wrote and was graded: with a success, and with nothing else."""
        columns = self.columns
        graded = ~columns.reward.isnan() & sampled(columns)
        if not graded.any():
            return {}
        right = torch.where(graded, columns.reward >= 1, False).double()
        num_groups = int(columns.group.max()) + 1
        solved, size = (torch.zeros(num_groups, dtype=torch.float64).index_add_(0, columns.group, values)
                        for values in (right, graded.double()))
        return {"group_solved_share": float((solved[size > 0] > 0).double().mean()),
                "group_all_right_share": float((solved == size)[size > 0].double().mean())}

    def by_position(self, found: dict) -> dict[str, dict[int, float]]:
        """Quantity -> bucket -> value, for buckets that have tokens."""
        moments = {name: moments_of(self.columns.position[flat], values) for name, (flat, values) in found.items()}
        means = {"gap": "teacher_gap_nats", "advantage": "advantage", **{name: name for name in OF_DISTRIBUTIONS}}
        tables = {shown: moments[name].mean for name, shown in means.items() if name in moments}
        if "teacher" in moments:
            tables["teacher_perplexity"] = (-moments["teacher"].mean).exp()
        counts = {shown: moments[name].count for name, shown in means.items() if name in moments}
        counts["teacher_perplexity"] = counts["tokens"] = moments["student"].count
        for name, shown in (("gap", "teacher_gap_std_nats"), ("advantage", "advantage_std")):
            if name in moments:
                tables[shown], counts[shown] = moments[name].variance.sqrt(), moments[name].count
        if "gradient" in moments:
            size = moments["gradient"].mean * moments["gradient"].count
            if size.sum() > 0:
                tables["gradient_share"], counts["gradient_share"] = size / size.sum(), moments["gradient"].count
        rollouts = self.columns.rollout[found["student"][0]].unique()
        tables |= {"tokens": counts["tokens"],
                   "rollouts": (self.columns.lengths[rollouts][:, None] > STARTS).sum(0).double()}
        counts["rollouts"] = tables["rollouts"]
        return {name: {bucket: float(table[bucket]) for bucket in counts[name].nonzero()[:, 0].tolist()}
                for name, table in tables.items()}


def chosen_tokens(num_tokens: int) -> Tensor:
    """Which of N tokens are compared closely: bool [N]; the same ones however the set is split. See SHARE."""
    wanted = min(max(LEAST, SHARE * num_tokens), MOST) / max(num_tokens, 1)
    hashed = (torch.arange(num_tokens) * 2654435761) % 2 ** 32  # Knuth's multiplicative hash: even over any stretch
    return hashed < wanted * 2 ** 32


@torch.no_grad()
def compared(student: StudentTokens, teacher: TeacherTokens | None) -> dict[str, Tensor]:
    """What OF_DISTRIBUTIONS names, [n] each, as far as the teacher's signal goes: whole, its likeliest, or nothing."""
    ours, values = student.full, {"student_entropy_nats": student.entropy}
    if teacher is None or teacher.hidden is None and (teacher.ids is None or teacher.ids.shape[1] < K):
        return values
    top, ids = ours.topk(min(K, ours.shape[-1]), -1), teacher.ids
    if teacher.hidden is not None:
        theirs = teacher.full.to(ours)
        at_ours, ids = theirs.gather(1, top.indices), theirs.topk(top.indices.shape[1], -1).indices
        values |= {"teacher_entropy_nats": entropy_of(theirs), "reverse_kl_nats": relative(ours, theirs).sum(-1),
                   "margin_nats": at_ours.amax(-1) - at_ours.mean(-1)}
    shared = (top.indices[:, :, None] == ids[:, None, :K]).any(-1)
    return values | {f"overlap@{K}": shared.double().mean(-1),
                     f"shared_mass@{K}": torch.where(shared, top.values.exp(), 0.0).sum(-1)}
