"""Student and teacher write completions in turns, whole batches of rollouts at a time.

The rollout is the first draft. The teacher reads a draft in one forward and keeps its tokens up to the first that is
not among its top k; there it writes itself, and the student drafts on from its words. What is kept of a draft is a
function of its tokens (nothing is drawn to accept them), and each position has one uniform of the student's and one of
the teacher's: how long drafts are changes nothing but rounding, so they are as long as is cheapest. Both models' caches
live over all blocks (see `rollback_cache`).
Left out: a token of the teacher's after a draft that it keeps whole (it would change what distribution tokens follow).
"""
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.opd.core.errors import NonFinite
from tasks.opd.core.records import STUDENT, TEACHER, Rollout
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines.in_top_k import in_top_k
from tasks.opd.engines.rollback_cache import RollbackCache
from tasks.opd.engines.sampling import COMPACT_BELOW, draw, sampling_logprobs, uniforms_of
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.models.heads import Head
from tasks.opd.rollouts.writers import AUTHORS, Engines
from tasks.opd.store.artifacts import fingerprint_of

WINDOW = 4            # tokens of a first draft read at once, twice as many each time: most drafts fail early
CATCH_UP = 16         # tokens of what is written so far that the student reads at once
READING = 1.25        # time in which a model reads a short draft, in steps of its own writing


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When the teacher writes, and how much."""
    k: int                        # a token among the teacher's k likeliest stays
    draft_tokens: int             # that the student writes, at most, before the teacher reads
    teacher_sampling: dict        # temperature and top_p
    decay_tokens: int = 0         # completions' expected length over which k falls to 1; 0: it does not
    span: int = 1                 # tokens the teacher writes at a rejection
    spans: float = math.inf       # how often it does so in a rollout
    within: float = math.inf      # tokens of the completion that it looks at


class InterleavedBatch:
    """Rollouts being rewritten together. Rows [B] are of those unfinished; sequences begin with their prompts."""

    def __init__(self, rollouts: list[Rollout], engines: Engines, rule: Rule, student: TorchEngine,
                 teacher: TorchEngine, ranking: Head):
        self.rollouts, self.rule, self.sampling, device = rollouts, rule, engines.sampling, student.device
        self.engines, self.ranking = {STUDENT: student, TEACHER: teacher}, ranking
        self.policies = {who: fingerprint_of(engines.inputs[name]) for name, who in AUTHORS.items()}
        self.teacher_steps = READING * teacher.model.num_parameters() / student.model.num_parameters()
        self.size = min(student.vocabulary, teacher.vocabulary)
        self.ends = {who: torch.tensor(sorted(ids), dtype=torch.long, device=device) for who, ids in
                     ((STUDENT, student.eos_ids), (TEACHER, student.eos_ids | teacher.eos_ids))}
        self.counts = dict.fromkeys(("proposed", "accepted", "blocks", "taught", "drafted", "verified"), 0)
        room, spec = self.sampling["max_new_tokens"], engines.spec
        start, written = ([len(getattr(r, key)) for r in rollouts] for key in ("prompt_token_ids", "token_ids"))
        width = max(p + max(room, t) for p, t in zip(start, written)) + 1

        def column(of, dtype) -> Tensor:
            return torch.tensor([[*of(r), *[0] * (width - len(of(r)))] for r in rollouts], dtype=dtype, device=device)
        self.tokens = column(lambda r: r.prompt_token_ids + r.token_ids, torch.long)       # [all, L]
        self.logprobs = column(lambda r: [0.0] * len(r.prompt_token_ids) + r.logprobs, torch.float64)
        self.author = torch.full_like(self.tokens, STUDENT)
        self.start = torch.tensor(start, device=device)               # [all] where completions begin
        self.length = self.start.clone()                              # [all] tokens that stay
        self.begun = self.start.clone()                               # [all] those before what is being read
        self.drafted = self.start + torch.tensor(written, device=device)  # [all] and those proposed after them
        self.limit = torch.maximum(self.start + room, self.drafted)   # [all]
        self.blocks, self.spans = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.ended = torch.zeros_like(self.start, dtype=torch.bool)
        self.uniforms = {who: uniforms_of([derive_seed(spec["seed"], spec["round"], r.rollout_id, name)
                                           for r in rollouts], int((self.limit - self.start).max())).to(device)
                         for who, name in ((STUDENT, "student drafts"), (TEACHER, "teacher redraws"))}
        self.rows = torch.arange(len(rollouts), device=device)        # [B] unfinished ones, in the caches' order
        self.place = self.rows.clone()                                # [all] where they stand there
        self.student: RollbackCache | None = None
        self.teacher: RollbackCache | None = None

    @torch.inference_mode()
    def run(self, progress) -> None:
        """Keep what the teacher accepts; where it stepped in, both write on until all rollouts have ended."""
        prompts = [r.prompt_token_ids for r in self.rollouts]
        self.teacher = RollbackCache(self.engines[TEACHER].model, prompts)
        self.verify(WINDOW, progress)
        self.leave(progress, 1.0)
        if len(self.rows):
            self.student = RollbackCache(self.engines[STUDENT].model, [prompts[i] for i in self.rows.tolist()])
            self.catch_up()
        while len(self.rows):
            tokens = self.draft_tokens()
            self.draft(tokens)
            self.verify(tokens, progress)
            self.leave(progress, COMPACT_BELOW)
        self.counts["read"] = self.teacher.num_read
        self.student = self.teacher = None  # their caches are large, and there may be more batches

    def leave(self, progress, below: float) -> None:
        """Finished rows go, once the unfinished are fewer than a share of all."""
        ended = self.ended[self.rows]
        count = int((~ended).sum())
        if count == len(self.rows) or 0 < count > below * len(self.rows):
            return
        progress.update(len(self.rows) - count)
        kept = torch.arange(count, device=ended.device)
        kept[ended[:count]] = count + torch.nonzero(~ended[count:])[:, 0]  # the last ones take the places of the ended
        self.rows = self.rows[kept]
        self.place[self.rows] = torch.arange(count, device=ended.device)
        for sequences in (self.student, self.teacher):
            if sequences is not None and count:
                sequences.keep(kept)

    def catch_up(self) -> None:
        """The student reads what is written so far, but for the last few tokens, long rows in steps."""
        while len(rows := torch.nonzero(self.length[self.rows] - self.student.filled > CATCH_UP)[:, 0]):
            self.student.read(self.tokens[self.rows], rows, self.student.filled[rows] + CATCH_UP)

    def draft_tokens(self) -> int:
        """How long the next drafts are: as many tokens, up to the rule's, as cost least for each that is emitted.

        If a share a is accepted, drafts of g emit 1 + a + .. + a^(g - 1) tokens for g steps of the student and one
        reading of the teacher's. Where k falls by blocks, they are as long as they are said to be.
        """
        most, share = self.rule.draft_tokens, self.counts["accepted"] / max(self.counts["proposed"], 1)
        if self.rule.decay_tokens:
            return most
        worth = {g: sum(share ** i for i in range(g)) / (g + self.teacher_steps) for g in range(1, most + 1)}
        return max(worth, key=worth.get)

    def draft(self, num_tokens: int) -> None:
        """The student proposes up to `num_tokens` tokens in each row, until an EOS or the limit."""
        places, rows = torch.arange(len(self.rows), device=self.rows.device), self.rows
        open_ = ~self.ended[rows]
        for _ in range(num_tokens):
            open_ = open_ & (self.drafted[rows] < self.limit[rows])
            if not open_.any():
                break
            hidden = self.student.read(self.tokens[rows], places, self.drafted[rows])[:, -1]
            drawn = rows[open_]
            self.put(drawn, self.drafted[drawn], hidden[open_], STUDENT)
            self.drafted[drawn] += 1
            self.counts["drafted"] += len(drawn)
            open_ = open_ & ~torch.isin(self.tokens[rows, self.drafted[rows] - 1], self.ends[STUDENT])

    def put(self, rows: Tensor, where: Tensor, hidden: Tensor, who: int) -> None:
        """Draw the tokens at places `where` [b] of rows [b] from the hidden states [b, d] before them."""
        sampling = {"top_k": 0, **(self.sampling if who == STUDENT else self.rule.teacher_sampling)}
        logits = self.engines[who].head.logits(hidden)[..., :self.size]
        logprobs = sampling_logprobs(logits, sampling["temperature"], sampling["top_p"], sampling["top_k"])
        chosen = draw(logprobs, self.uniforms[who][rows, where - self.start[rows]])
        self.tokens[rows, where], self.author[rows, where] = chosen, who
        self.logprobs[rows, where] = logprobs.gather(-1, chosen[:, None])[:, 0].double()

    def verify(self, window: int, progress) -> None:
        """Read every draft to its first rejection or its end; the teacher writes where it rejects."""
        rows = self.rows
        self.begun[rows] = self.length[rows]
        waiting = rows[self.length[rows] < self.drafted[rows]]
        self.counts["blocks"] += int(self.watched(waiting).sum())
        while len(waiting):
            seen, before = self.watched(waiting), self.length[waiting]
            free = waiting[~seen]
            self.length[free] = self.drafted[free]
            if seen.any():
                self.resample(*self.accept(waiting[seen], window))
            progress.update(0, tokens=int((self.length[waiting] - before).sum()))
            waiting, window = waiting[self.length[waiting] < self.drafted[waiting]], 2 * window
        self.ended[rows] = self.stopped(rows) | (self.length[rows] == self.limit[rows]) | (self.spans[rows] == 0)
        settled = self.length[rows] - self.begun[rows]  # with a rejected one, as k falls only where spans are of 1
        self.blocks[rows] += (settled + self.rule.draft_tokens - 1) // self.rule.draft_tokens

    def stopped(self, rows: Tensor) -> Tensor:
        """Whether the last token of rows ends a completion, for the one who wrote it."""
        tokens, author = (x[rows, self.length[rows] - 1] for x in (self.tokens, self.author))
        ends = {who: torch.isin(tokens, ids) for who, ids in self.ends.items()}
        return torch.where(author == TEACHER, ends[TEACHER], ends[STUDENT])

    def watched(self, rows: Tensor) -> Tensor:
        """Whether the teacher looks at what comes next in rows."""
        return (self.spans[rows] < self.rule.spans) & (self.length[rows] - self.start[rows] < self.rule.within)

    def accept(self, rows: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """Accept at most `window` drafted tokens; the rows [r] with a rejection, the teacher's states there [r, d]."""
        length, places = self.length[rows], self.place[rows]
        ends = torch.minimum(self.drafted[rows], length + window)
        if self.rule.within < math.inf:
            ends = torch.minimum(ends, self.start[rows] + self.rule.within)
        filled = self.teacher.filled[places]
        hidden = self.teacher.read(self.tokens[self.rows], places, ends - 1)
        row, offset = torch.nonzero(torch.arange(window, device=ends.device) < (ends - length)[:, None], as_tuple=True)
        where = length[row] + offset
        k = self.k_of(self.blocks[rows[row]] + (where - self.begun[rows[row]]) // self.rule.draft_tokens)
        out = ~in_top_k(self.engines[TEACHER].head, self.ranking, self.size, hidden[row, where - 1 - filled[row]],
                     self.tokens[rows[row], where], k)
        first = ends.scatter_reduce(0, row[out], where[out], "amin")
        rejected = first < ends
        self.counts["verified"] += int((ends - length).sum())  # those after a rejection were read too
        self.counts["accepted"] += (accepted := int((first - length).sum()))
        self.counts["proposed"] += accepted + int(rejected.sum())
        self.length[rows] = first
        return rows[rejected], hidden[rejected, (first - 1 - filled)[rejected]]

    def k_of(self, blocks: Tensor) -> Tensor:
        """How many of the teacher's likeliest tokens are accepted after so many blocks of a rollout."""
        k, expected = self.rule.k, self.rule.decay_tokens
        if not (k and expected):
            return torch.full_like(blocks, k)
        return (k - math.ceil(k / expected) * (blocks // max(int(expected / k), 1))).clamp(min=1)

    def resample(self, rows: Tensor, hidden: Tensor) -> None:
        """The teacher goes on from hidden states [r, d] in the place of what was drafted in rows [r]."""
        taught, places = rows, self.place[rows]
        for sequences in (self.teacher, self.student):
            if sequences is not None:
                sequences.forget(places, self.length[rows])
        self.spans[rows] += 1
        for written in range(self.rule.span):
            if written:
                hidden = self.teacher.read(self.tokens[self.rows], places, self.length[rows])[:, -1]
            self.put(rows, self.length[rows], hidden, TEACHER)
            stopped = torch.isin(self.tokens[rows, self.length[rows]], self.ends[TEACHER])
            self.length[rows] += 1
            self.counts["taught"] += len(rows)
            on = ~stopped & (self.length[rows] < self.limit[rows])
            rows, places = rows[on], places[on]
            if not len(rows):
                break
        self.drafted[taught] = self.length[taught]

    def refined(self, name: str) -> list[Rollout]:
        """The rollouts as they are now; an untouched one is itself. Raises NonFinite where logits were not finite."""
        out, stopped = [], self.stopped(torch.arange(len(self.rollouts), device=self.start.device)).tolist()
        for i, old in enumerate(self.rollouts):
            where = slice(len(old.prompt_token_ids), int(self.length[i]))
            if not self.spans[i]:
                out.append(old)
                continue
            tokens, logprobs, author = (x[i, where].tolist() for x in (self.tokens, self.logprobs, self.author))
            kept = author.index(TEACHER)  # tokens of the draft; what follows was written now
            if any(map(math.isnan, logprobs)):
                raise NonFinite(f"the logits of a model are not finite behind {old.rollout_id}: look at its weights, "
                                "and what trained it; for a model from outside, engine.dtype: float32 may help")
            out.append(dataclasses.replace(
                old, rollout_id=f"{old.rollout_id}:{name}", parent=old.rollout_id, token_ids=tokens, logprobs=logprobs,
                author=author, policy=old.policy[:kept] + [self.policies[who] for who in author[kept:]],
                finish_reason="stop" if stopped[i] else "length", teacher_prompt_ids=None, reward=None, feedback=None))
        return out
