"""Engines: token ids in, token ids and log-probabilities out.

api             Engine, Want, Signal, Completion, Capabilities
sampling        the distribution drawn from, and the decode loop
mixture         two models write together
torch_engine    transformers in this process
rollback_cache  a key-value cache whose ends may change
in_top_k        whether tokens are among the likeliest k
vllm_engine     vLLM
vllm_settings   its arguments
vllm_extension  what vLLM's worker learns of us
http            models behind servers
canary          what an engine makes of known tokens
pool            what a worker keeps between stages; the only module that knows all engines
"""
