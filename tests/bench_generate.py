"""Tokens a second of an engine's generate against its library's own, on the same prompts. Not collected by pytest.

    python tests/bench_generate.py [--engine torch|vllm] [--folder MODEL] [--dtype bfloat16] [--prompts 128]
                                   [--new 96] [--repeats 5]

TorchEngine against transformers' `generate`, VllmEngine against vLLM's `LLM.generate` without seeds and
log-probabilities. Without --folder a random Llama of the tiny pair's size is made. Both sample at temperature 1 and
never stop early, so both write prompts x new tokens. Repetitions alternate; medians and their ratio are printed.
"""
import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from tasks.workers.launchers import quiet_environment

quiet_environment()  # says how torch's threads wait, so before torch is imported

import torch  # noqa: E402  the line above must come first
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from tasks.opd.engines.torch_engine import TorchEngine  # noqa: E402


def tiny(folder: Path) -> Path:
    """A random Llama: hidden 128, 4 layers, 600 ids."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=600, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
                         bos_token_id=None, eos_token_id=None, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def by_transformers(engine: TorchEngine, prompts: list[list[int]], num_new: int) -> None:
    """The same prompts left-padded in one batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=engine.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=engine.device)
    with torch.inference_mode():
        engine.model.generate(input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                              max_new_tokens=num_new, pad_token_id=0)


def by_vllm(engine, prompts: list[list[int]], num_new: int) -> None:
    """The same prompts with nothing asked for but tokens."""
    from vllm import SamplingParams
    sampling = SamplingParams(temperature=1.0, max_tokens=num_new, ignore_eos=True, detokenize=False)
    engine.llm.reset_prefix_cache()
    engine.llm.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)


def sides_of(args) -> dict:
    """Name -> a call that writes prompts x new tokens."""
    folder, numbers = args.folder or tiny(Path(tempfile.mkdtemp())), random.Random(0)
    prompts = [[numbers.randrange(5, 500) for _ in range(numbers.randrange(30, 60))] for _ in range(args.prompts)]
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": args.new}
    if args.engine == "vllm":
        from tasks.opd.engines.vllm_engine import VllmEngine
        engine, bare = VllmEngine(folder, args.dtype), by_vllm
    else:
        engine, bare = TorchEngine(folder, args.dtype), by_transformers
        engine.model.generation_config.eos_token_id = None
    engine.eos_ids = set()  # write to the end

    def ours() -> None:
        if args.engine == "vllm":
            engine.llm.reset_prefix_cache()
        engine.generate(prompts, sampling, list(range(args.prompts)))
    return {f"{args.engine} engine": ours, "library": lambda: bare(engine, prompts, args.new)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sides = sides_of(args)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(args.repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    rate = {name: args.prompts * args.new / statistics.median(times) for name, times in seconds.items()}
    rates = ", ".join(f"{name} {value:.0f} tokens/s" for name, value in rate.items())
    print(f"{args.folder or 'tiny'} {args.dtype} {args.prompts} x {args.new}: {rates}, "
          f"ratio {rate[f'{args.engine} engine'] / rate['library']:.2f}")


if __name__ == "__main__":
    main()
