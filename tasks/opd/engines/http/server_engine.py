"""A model behind a server: vLLM's OpenAI-compatible one, asked with token ids, never with text.

Its folder holds the tokenizer's files and `server.json`: where it is, what it can do, and a canary by which it is known
again, its log-probabilities of a few completions at the time it was named. Requests go to /inference/v1/generate where
the server was started with --enable-scale-out (it spells nothing out), else to /v1/completions. All sampling
parameters are sent, since a server fills in what is missing from the model's generation config. Left out: servers that
give no log-probabilities of prompt tokens, for nobody could say whose answers they are; entropies, hidden states and
scoring at another temperature, which no such server gives. Padding ids of a vocabulary stay in its normaliser, and are
dropped from the likeliest and from the tail.
"""
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from tasks.opd.core.errors import DataError, EngineError, NonFinite, TokenizerMismatch
from tasks.opd.engines.api import Capabilities, Completion, Signal, Want, tail_of
from tasks.opd.engines.canary import AGREEMENT
from tasks.opd.engines.http.replicas import Replicas, Request
from tasks.opd.models.folders import eos_ids_of, vocabulary_size

SERVER = "server.json"
NO_NUMBER = -9999.0       # what vLLM says for NaN and -inf, which JSON cannot
ABOVE_ZERO = 1e-3         # rounding may lift a log-probability of 0 by less
SPARE = 4                 # likeliest tokens asked for beyond top_k, should some be padding ids
PATHS = {"tokens": "/inference/v1/generate", "completions": "/v1/completions"}


class ServerEngine:
    """A served model; `longest_tokens` must fit into its context, `bounds` are those of `Replicas` (None: its own).

    Raises: EngineError when another model than the one named is behind a url, DataError when its context is too short.
    """

    def __init__(self, folder: Path, *, longest_tokens: int | None = None, **bounds):
        self.longest_tokens = longest_tokens or 0
        self.bounds = {name: bound for name, bound in bounds.items() if bound is not None}
        self._open(Path(folder))

    def _open(self, folder: Path) -> None:
        self.folder, known = folder, json.loads((folder / SERVER).read_text())
        self.model, self.route, self.processed = known["model"], known["route"], known["processed"]
        self.longest, self.max_top_k = known["max_model_len"], known["max_top_k"]
        if self.longest_tokens > self.longest:
            raise DataError(f"{self.model}'s server takes {self.longest} tokens and, to score what fills the context, "
                            f"needs {self.longest_tokens}, for it writes one more: start it with --max-model-len "
                            f"{self.longest_tokens}, or lower pair.context_tokens to {self.longest - 1}")
        self.eos_ids, self.vocabulary = eos_ids_in(folder), vocabulary_size(folder)
        self.replicas = Replicas(known["urls"], known["key"], **self.bounds)
        canary = known["canary"]
        self.replicas.welcome = [self.scoring(*row, 0) for row in zip(canary["prompts"], canary["completions"])]
        self.replicas.recognise = lambda answers: self._recognise(answers, canary["logprobs"])
        self.replicas.ask(Request(path="/v1/models", read=lambda answer: answer["data"]))

    def generate(self, prompts: list[list[int]], sampling: dict, seeds: list[int], *,
                 progress=None) -> list[Completion]:
        """See Engine. A batch's neighbours may change a completion by rounding, in bfloat16 often.

        A server started without --logprobs-mode processed_logprobs gives log-probabilities of the whole softmax at
        temperature 1; under another distribution they are NaN here, and 0 where the distribution is a point mass.

        Raises: ValueError at an empty prompt, DataError where the server's context is too short, NonFinite, EngineLost.
        """
        if len(prompts) != len(seeds) or not all(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds: give one seed a prompt and no empty prompt")
        self._check_room(prompts, sampling["max_new_tokens"])
        whole = sampling["temperature"] == 1 and sampling["top_p"] == 1 and sampling["top_k"] == 0
        if not (whole or self.processed or sampling["temperature"] == 0):
            print(f"opd: {self.model} gives log-probabilities of another distribution than it samples from; they are "
                  "NaN here. Start its server with --logprobs-mode processed_logprobs if they are needed",
                  file=sys.stderr)
        return self.replicas.ask_all([self._writing(p, sampling, seed, whole) for p, seed in zip(prompts, seeds)],
                                     progress)

    def score(self, prompts: list[list[int]], completions: list[list[int]], want: Want, *, temperature: float = 1.0,
              progress=None) -> list[Signal]:
        """See Engine. Float32. Raises EngineError for what the server has not: entropy, hidden, a temperature, more k.

        Raises too: ValueError at an empty prompt, DataError where its context is too short, NonFinite, EngineLost.
        """
        if want.entropy or want.hidden or temperature != 1.0:
            raise EngineError(f"{self.model} is behind a server, which scores the tokens written and the likeliest "
                              "ones, at temperature 1; for entropy, whole distributions or another loss.temperature "
                              "give the pair that model's folder ({name: folder, path: ...})")
        top_k = min(want.top_k, self.vocabulary)
        if top_k > self.max_top_k:
            raise EngineError(f"{self.model}'s server gives the {self.max_top_k} likeliest tokens, {top_k} are asked "
                              f"for: start it with --max-logprobs {top_k}, or lower k of the support")
        if len(prompts) != len(completions) or not all(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: give one each, no empty prompt")
        self._check_room([p + c for p, c in zip(prompts, completions)], 1)
        asked = [i for i, completion in enumerate(completions) if completion]
        answers = self.replicas.ask_all([self.scoring(prompts[i], completions[i], top_k) for i in asked], progress)
        found = dict(zip(asked, answers))
        empty = torch.empty(0), torch.empty(0, top_k), torch.empty(0, top_k, dtype=torch.long), torch.empty(0, 1)
        return [signal_of(*found.get(i, empty), want) for i in range(len(completions))]

    def _check_room(self, sequences: list[list[int]], new: int) -> None:
        longest = max(map(len, sequences), default=0)
        if longest + new > self.longest:
            raise DataError(f"a sequence of {longest} tokens and {new} to write (to score, a server writes one) do not "
                            f"fit into the {self.longest} of {self.model}'s server: start it with a larger "
                            "--max-model-len, or lower pair.context_tokens")

    def _request(self, token_ids: list[int], parameters: dict, read) -> Request:
        """A request by the server's route; `read(choice, prompt log-probabilities)` reads its one answer."""
        def opened(answer: dict):
            choice, = answer["choices"]
            holder = answer if self.route == "tokens" else choice
            if holder["prompt_token_ids"] != token_ids:
                raise ValueError("it read other tokens than it was sent")
            if choice["finish_reason"] not in ("stop", "length"):
                raise ValueError(f"it ended by {choice['finish_reason']!r}")
            return read(choice, holder["prompt_logprobs"])
        body = {"model": self.model, "return_token_ids": True}
        body |= {"prompt": token_ids, **parameters} if self.route == "completions" else \
            {"token_ids": token_ids, "sampling_params": {**parameters, "detokenize": False}}
        return Request(path=PATHS[self.route], body=body, read=opened)

    def scoring(self, prompt: list[int], completion: list[int], top_k: int) -> Request:
        """Asks for (log-probabilities [T], those [T, K] of the likeliest, their ids [T, K], the others' [T, 1]).

        The others are padding ids among the likeliest: the log of their mass.
        """
        asked = max(top_k, min(top_k + SPARE, self.max_top_k)) if top_k else 0

        def read(choice: dict, logprobs: list[dict]):
            rows, count = logprobs[len(prompt):], len(prompt) + len(completion)
            if len(logprobs) != count:
                raise ValueError(f"{len(logprobs)} rows for {count} tokens")
            own = [row[str(token)]["logprob"] for row, token in zip(rows, completion)]
            best = [self._likeliest(row, top_k, asked) for row in rows]
            padding = [[entry["logprob"] for i, entry in row.items()
                        if int(i) >= self.vocabulary and entry["logprob"] > NO_NUMBER] for row in rows]
            self._check_logprobs([*own, *(lp for row in best for lp, _ in row)])
            return (torch.tensor(own), torch.tensor([[lp for lp, _ in row] for row in best]).reshape(len(own), top_k),
                    torch.tensor([[i for _, i in row] for row in best], dtype=torch.long).reshape(len(own), top_k),
                    torch.stack([torch.tensor(lps).logsumexp(-1, keepdim=True) for lps in padding]))
        return self._request(prompt + completion, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": asked}, read)

    def _likeliest(self, row: dict, top_k: int, asked: int) -> list[tuple[float, int]]:
        """The `top_k` likeliest named tokens of a row, as (log-probability, id)."""
        named = [(entry["logprob"], int(i)) for i, entry in row.items() if int(i) < self.vocabulary]
        if len(row) < asked:
            raise ValueError(f"fewer than {asked} likeliest tokens")
        if len(named) < top_k:
            raise EngineError(f"{self.model}'s server gives {len(row) - len(named)} ids that name no token among the "
                              f"{asked} likeliest: start it with a larger --max-logprobs and make the model anew, or "
                              "lower k of the support")
        return sorted(named, reverse=True)[:top_k]

    def _writing(self, prompt: list[int], sampling: dict, seed: int, whole: bool) -> Request:
        """Asks for a Completion."""
        most, greedy = sampling["max_new_tokens"], sampling["temperature"] == 0

        def read(choice: dict, _) -> Completion:
            ids, given = list(choice["token_ids"]), choice["logprobs"]
            logprobs = [entry["logprob"] for entry in given["content"]] if self.route == "tokens" else \
                list(given["token_logprobs"])
            stopped = bool(ids) and ids[-1] in self.eos_ids
            if not 0 < len(ids) == len(logprobs) <= most or (choice["finish_reason"] == "length" and len(ids) < most):
                raise ValueError(f"{len(ids)} tokens and {len(logprobs)} log-probabilities, {most} wanted")
            if choice["finish_reason"] != "length" and not stopped:
                raise EngineError(f"{self.model} ended a completion at token {ids[-1]}, which ends none here: put the "
                                  "model's generation_config.json into the folder `tokenizer` of the pair")
            self._check_logprobs(logprobs)
            self._check_ids(ids)
            own = [0.0] * len(ids) if greedy else logprobs if whole or self.processed else [math.nan] * len(ids)
            return Completion(token_ids=ids, logprobs=own, finish_reason="stop" if stopped else "length")
        chosen = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": sampling["top_k"],
               "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        return self._request(prompt, {**chosen, "seed": seed, "max_tokens": most, "logprobs": 0,
                                      "stop_token_ids": sorted(self.eos_ids)}, read)

    def _check_logprobs(self, logprobs: list[float]) -> None:
        if not all(NO_NUMBER < lp < math.inf for lp in logprobs):
            raise NonFinite(f"{self.model}'s server gives log-probabilities that are no numbers: look at its weights "
                            "and precision")
        if max(logprobs, default=0.0) > ABOVE_ZERO:
            raise EngineError(f"{self.model}'s server gives a log-probability of {max(logprobs)}, above 0: it gives "
                              "something else; start it with --logprobs-mode raw_logprobs or processed_logprobs")

    def _check_ids(self, ids: list[int]) -> None:
        if not all(0 <= i < self.vocabulary for i in ids):
            raise TokenizerMismatch(f"{self.model} uses token id {max(ids)}, which its tokenizer in {self.folder} does "
                                    f"not name (it names {self.vocabulary}): serve a model with that tokenizer")

    def _recognise(self, answers: list[tuple], logprobs: list[list[float]]) -> None:
        """Raise EngineError where a replica's answers to the welcome are another model's, by the mean of all tokens."""
        apart = [(own.double() - torch.tensor(known, dtype=torch.float64)).abs()
                 for (own, *_), known in zip(answers, logprobs, strict=True)]
        mean = float(torch.cat(apart).mean()) if apart else 0.0  # while a server is being named, nothing is known
        if not mean <= AGREEMENT["bfloat16"]:
            raise EngineError(f"another model than {self.model} was is behind one of its urls: it differs by "
                              f"{mean:.2f} nats a token on known completions (bound {AGREEMENT['bfloat16']}). "
                              "Serve that model again, or give the new one a name of its own (--served-model-name)")

    def load(self, folder: Path) -> dict[str, str]:
        """Turn to the server that another folder names; no tensors are held, so there are no digests."""
        self.close()
        self._open(Path(folder))
        return {}

    def capabilities(self) -> Capabilities:
        """The tokens written and the likeliest ones, as many as its server gives; text."""
        return Capabilities(columns=frozenset({"sampled", "top_k"}))

    def sleep(self) -> None:
        """It has no device here."""

    def close(self) -> None:
        """Drop the connections; only `load` may follow."""
        self.replicas.close()


def signal_of(own: torch.Tensor, logprobs: torch.Tensor, ids: torch.Tensor, padding: torch.Tensor,
              want: Want) -> Signal:
    """The columns asked for; what padding ids have is not in the tail."""
    sampled = own if want.sampled else None
    tail = tail_of(torch.cat([logprobs, padding], -1))
    return Signal(sampled=sampled, ids=ids, logprobs=logprobs, tail=tail) if want.top_k else Signal(sampled=sampled)


def eos_ids_in(folder: Path) -> set[int]:
    """Every id that ends a completion, by the generation config, the config and the tokenizer of a folder."""
    files = [folder / "generation_config.json", folder / "config.json"]
    found = [SimpleNamespace(**json.loads(file.read_text()) if file.exists() else {}) for file in files]
    return eos_ids_of(folder, SimpleNamespace(generation_config=found[0], config=found[1]))
