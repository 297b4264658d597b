"""Seconds and peak memory of the head and the loss, forward and backward, against autograd. Not collected by pytest.

    python tests/bench_head.py [--vocabulary V --tokens N --hidden D] [--divergence reverse_kl|forward_kl|jsd]
                               [--autocast bfloat16|off] [--repeats 3]

One micro-batch of hidden states through `training.round.accumulate`, against autograd over the head and the
divergence's definition in chunks of the same size, and over all tokens at once. Without a vocabulary: three of common
size. Repetitions alternate; printed are medians, their ratios, and the memory that a side's step adds at its peak.
"""
import argparse
import statistics
import time

from tasks.workers.launchers import quiet_environment

quiet_environment()  # says how torch's threads wait, so before torch is imported

import torch  # noqa: E402  the line above must come first
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from tasks.opd.core.batches import chunk_tokens  # noqa: E402
from tasks.opd.models.heads import head_of  # noqa: E402
from tasks.opd.objective.columns import columns_of  # noqa: E402
from tasks.opd.objective.divergences import mixture, relative  # noqa: E402
from tasks.opd.objective.loss import Stats  # noqa: E402
from tasks.opd.objective.terms import Prepared, bind_terms  # noqa: E402
from tasks.opd.runtime.worker import peak_memory, reset_peak_memory  # noqa: E402
from tasks.opd.training.forward import Forward  # noqa: E402
from tasks.opd.training.round import accumulate  # noqa: E402
from tasks.opd.training.scored_set import ScoredSet  # noqa: E402
from tests.tiny_models import rollout, term, train_spec  # noqa: E402

SIZES = ((49_152, 576, 2048), (151_936, 1024, 512), (262_144, 1152, 256))  # vocabulary, hidden, tokens
DEFINITIONS = {
    "forward_kl": lambda t, s: relative(t, s).sum(-1), "reverse_kl": lambda t, s: relative(s, t).sum(-1),
    "jsd": lambda t, s: (0.5 * relative(t, mixture(t, s, 0.5)) + 0.5 * relative(s, mixture(t, s, 0.5))).sum(-1)}


class HiddenAtHand(Forward):
    """A student whose body has run."""
    hidden: Tensor

    def micro_batches(self, batch: list[int], wanted: Tensor):
        """All tokens at once."""
        yield self.hidden, torch.arange(len(self.hidden))


def sides_of(size: tuple[int, int, int], divergence: str, autocast: str) -> dict:
    """Name -> a call that leaves gradients at the head's weight and at the hidden states."""
    vocabulary, width, count = size
    torch.manual_seed(0)
    model, teacher = (LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None)) for _ in "st")
    rollouts = [rollout(0, [1], torch.randint(vocabulary, (count,)).tolist())]
    columns, hidden, theirs = columns_of(rollouts), torch.randn(count, width), torch.randn(count, width)
    spec = train_spec([term(divergence=divergence, support="full")], vocabulary=vocabulary)
    spec["train"]["autocast"], spec["effort"]["chunk_tokens"] = autocast, chunk_tokens(vocabulary)
    forward, terms, blank = HiddenAtHand(model, rollouts, columns, spec), bind_terms(spec["terms"]), torch.zeros(count)
    took = [Prepared(mask=blank == 0, weight=blank + 1, old_logprobs=blank, advantage=None, candidates=None, report={})]
    head, scale = head_of(teacher), torch.full((1, count), 1 / count, dtype=torch.float64)
    scored = ScoredSet(rollouts=rollouts, present={}, heads={"teacher": head}, temperature=1.0,
                       flat={"teacher": {"hidden": theirs, "sampled": blank}})

    def ours() -> None:
        model.zero_grad()
        forward.hidden = hidden.clone().requires_grad_()
        accumulate(forward, terms, took, scale, [0], scored, Stats())

    def by_autograd(chunk: int) -> None:
        model.zero_grad()
        leaf = hidden.clone().requires_grad_()
        for part in (slice(start, start + chunk) for start in range(0, count, chunk)):
            live = torch.log_softmax(head_of(model).logits(leaf[part]), -1)
            with torch.no_grad():
                aimed = torch.log_softmax(head.logits(theirs[part]), -1)
            (DEFINITIONS[divergence](aimed, live).sum() / count).backward()
    return {"closed form": ours, "autograd": lambda: by_autograd(chunk_tokens(vocabulary)),
            "unchunked": lambda: by_autograd(count)}


def measure(run) -> tuple[float, float]:
    """Seconds of a call, and the mebibytes it needed at its peak beyond those that were there."""
    reset_peak_memory()
    before, start = peak_memory()["process"], time.perf_counter()
    run()
    return time.perf_counter() - start, (peak_memory()["process"] - before) / 2 ** 20


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("vocabulary", "hidden", "tokens"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--divergence", choices=DEFINITIONS, default="reverse_kl")
    parser.add_argument("--autocast", choices=["bfloat16", "off"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for size in [(args.vocabulary, args.hidden, args.tokens)] if args.vocabulary else SIZES:
        sides = sides_of(size, args.divergence, args.autocast)
        taken: dict[str, list] = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):
            for name, run in sides.items():
                taken[name] += [measure(run)][:repeat]  # the first is a warm-up
        seconds, memory = ({name: statistics.median(values[i] for values in pairs) for name, pairs in taken.items()}
                           for i in (0, 1))
        ours = seconds["closed form"], memory["closed form"]
        print(f"{args.divergence} {size[0]:,} x {size[1]}, {size[2]} tokens, autocast {args.autocast}: " + "; ".join(
            f"{name} {seconds[name]:.2f} s ({seconds[name] / ours[0]:.1f}x), {memory[name]:.0f} MiB "
            f"({memory[name] / ours[1]:.1f}x)" for name in sides), flush=True)


if __name__ == "__main__":
    main()
