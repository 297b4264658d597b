"""Arguments of vLLM's engine: precision, context, cache and memory, batches, adapters. Imports no vLLM."""
from pathlib import Path

import torch

from tasks.opd.engines.vllm_extension import Inspection

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those vLLM makes room for
SCHEDULED_TOKENS = 2048   # forwarded at once on a GPU; with them, the logits alive while scoring
SEQUENCES = 256           # written at once


def settings_of_vllm(folder: Path, dtype: str, batch_tokens: int, longest_tokens: int | None,
                     memory_share: float | None, lora_rank: int) -> dict:
    """Arguments of vllm.LLM for a folder with whole weights, under adapters of up to `lora_rank` (0: none).

    On a CPU the cache holds `batch_tokens` tokens; on a GPU the engine takes `memory_share` of the memory and sleeps
    while others use it.
    """
    from transformers import AutoConfig
    config, cuda = AutoConfig.from_pretrained(folder, local_files_only=True), torch.cuda.is_available()
    length = min(config.max_position_embeddings, longest_tokens or config.max_position_embeddings)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize  # bytes of keys and values
    memory = {"gpu_memory_utilization": memory_share or 0.4, "enable_sleep_mode": True} if cuda else {
        "kv_cache_memory_bytes": token * (max(batch_tokens, length) + SEQUENCES * 128)}  # a CPU's blocks: 128 tokens
    adapters = {"enable_lora": True, "max_loras": 1,
                "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= lora_rank)} if lora_rank else {}
    return {"model": str(folder), "dtype": dtype, "max_model_len": length, "skip_tokenizer_init": True, "seed": 0,
            "max_num_batched_tokens": max(SEQUENCES, SCHEDULED_TOKENS if cuda else length),
            "enable_chunked_prefill": cuda,  # half a prompt draws from its seed, and a CPU's generator cannot go back
            "max_num_seqs": SEQUENCES, "enforce_eager": not cuda, "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs", "max_logprobs": -1,
            "generation_config": "vllm", "load_format": "safetensors", "config_format": "hf", "use_tqdm_on_load": False,
            "disable_log_stats": True, "trust_remote_code": False,
            "worker_extension_cls": f"{Inspection.__module__}.{Inspection.__name__}", **memory, **adapters}
