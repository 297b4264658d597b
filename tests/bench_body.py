"""Seconds of a training step with prompts shared against padded rows, on the same rollouts. Not collected by pytest.

    python tests/bench_body.py [--layers 6] [--groups 6] [--prompt 110] [--new 128] [--dtype float32] [--repeats 3]

Random weights of SmolLM2-135M's shapes, cut to some layers. The head is left out: a step is the body over the rollouts
and its backward pass from a constant gradient, and so is not the trainer's whole step. Cases: one completion a prompt,
four, and four scored without gradients; completions take a quarter to all of `--new` tokens. Both sides alternate in
this process; medians, their ratio and the share of distinct tokens are printed.
"""
import argparse
import random
import statistics
import time
from contextlib import nullcontext

from tasks.workers.launchers import quiet_environment

quiet_environment()  # says how torch's threads wait, so before torch is imported

import torch  # noqa: E402  the line above must come first
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from tasks.opd.models.packing import batches_of, body_states, can_share, pack  # noqa: E402


def smollm2(layers: int) -> LlamaForCausalLM:
    """Random weights of SmolLM2-135M's shapes, of a small vocabulary."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True)).eval()


def rollouts_of(groups: int, size: int, num_prompt: int, num_new: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 1/2 to 3/2 of `num_prompt` tokens, each given `size` times, and completions of uneven lengths."""
    numbers = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [numbers.randrange(5, 500) for _ in range(count)]
    prompts = [tokens(numbers.randrange(num_prompt // 2, num_prompt * 3 // 2)) for _ in range(groups)]
    each = [prompt for prompt in prompts for _ in range(size)]
    return each, [tokens(numbers.randrange(num_new // 4, num_new + 1)) for _ in each]


def run(model, prompts: list[list[int]], completions: list[list[int]], shared: bool, limit: int, args) -> int:
    """The body over all rollouts, with its backward pass where gradients are on; tokens that went through it."""
    tokens, bfloat16 = 0, args.dtype == "bfloat16"
    for batch in batches_of(prompts, [len(c) for c in completions], limit, shared):
        packed = pack([prompts[i] for i in batch], [completions[i] for i in batch], shared)
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            hidden = body_states(model, packed)[packed.places]
        if torch.is_grad_enabled():
            hidden.backward(torch.full_like(hidden, 1e-3))
        tokens += packed.token_ids.numel()
    model.zero_grad(set_to_none=True)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=110)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--limit", type=int, default=8192)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = smollm2(args.layers)
    assert can_share(model)
    for name, size, grad in (("train n=1", 1, True), ("train n=4", 4, True), ("score n=4", 4, False)):
        prompts, completions = rollouts_of(args.groups * 4 // size, size, args.prompt, args.new)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        tokens: dict[bool, int] = {}
        for repeat in range(args.repeats + 1):
            for shared in (True, False):
                start = time.perf_counter()
                with torch.set_grad_enabled(grad):
                    tokens[shared] = run(model, prompts, completions, shared, args.limit, args)
                if repeat:  # the first is a warm-up
                    seconds[shared].append(time.perf_counter() - start)
        shared, padded = (statistics.median(seconds[side]) for side in (True, False))
        print(f"{name} {args.dtype}: shared {shared:.2f} s, padded {padded:.2f} s, ratio {shared / padded:.2f} of the "
              f"time for {tokens[True] / tokens[False]:.2f} of the tokens ({tokens[True]} of {tokens[False]})")


if __name__ == "__main__":
    main()
