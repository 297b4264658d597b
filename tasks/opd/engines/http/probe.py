"""What a server is and can do, asked once, when its model is named: written as `server.json` beside its tokenizer.

It must spell every id as the tokenizer does. Its limits are found by asking, for no page of a server states them.
"""
import json
from pathlib import Path

from tasks.opd.core.errors import EngineError, TokenizerMismatch
from tasks.opd.engines.api import Want
from tasks.opd.engines.http.replicas import Declined, Replicas, Request
from tasks.opd.engines.http.server_engine import SERVER, ServerEngine
from tasks.opd.models.folders import vocabulary_size

MOST_TOP_K = 1024         # nobody asks for more; a lower limit of the server is sought
SPELLED_AT_ONCE = 4096    # ids whose spelling is compared in one request
BEYOND = 16               # ids after the last, which must have no spelling
CANARY_PROMPTS, CANARY_TOKENS, CANARY_AT_LEAST = 3, 16, 24  # completions at first, longest of one, tokens of all


def introduce(folder: Path, urls: list[str], model: str, key: str, **bounds) -> dict:
    """Ask a server for what it is and can do, and write server.json into `folder`, which holds its tokenizer.

    Returns {route, max_model_len, max_top_k, processed}. Raises: EngineError naming what it cannot do, or EngineLost;
    TokenizerMismatch naming the first id that it spells otherwise.
    """
    replicas = Replicas(urls, key, **bounds)
    try:
        served = replicas.ask(Request(path="/v1/models", read=lambda answer: {m["id"]: m for m in answer["data"]}))
        if model not in served:
            raise EngineError(f"{urls[0]} serves {', '.join(served)}, not {model}: set `model` to one of them")
        check_spelling(replicas, folder, model)
    finally:
        replicas.close()
    known = {"urls": urls, "model": model, "key": key, "route": "completions", "processed": True, "max_top_k": 0,
             "max_model_len": served[model].get("max_model_len") or 1 << 30,
             "canary": {"prompts": [], "completions": [], "logprobs": []}}
    (folder / SERVER).write_text(json.dumps(known))
    engine = ServerEngine(folder, **bounds)
    try:
        known |= abilities(engine) | {"canary": canary_of(engine)}
    finally:
        engine.close()
    (folder / SERVER).write_text(json.dumps(known, indent=1))
    return {name: known[name] for name in ("route", "max_model_len", "max_top_k", "processed")}


def check_spelling(replicas: Replicas, folder: Path, model: str) -> None:
    """The server spells every id, one by one and in a row, as the tokenizer in `folder` does."""
    from transformers import AutoTokenizer
    tokenizer, count = AutoTokenizer.from_pretrained(folder, local_files_only=True), vocabulary_size(folder)

    def theirs(ids: list[int]) -> str:
        return replicas.ask(Request(path="/detokenize", body={"model": model, "tokens": ids},
                                    read=lambda answer: answer["prompt"]))

    def first_wrong(ids: list[int]) -> int | None:
        if tokenizer.decode(ids) == theirs(ids):
            return None
        if len(ids) == 1:
            return ids[0]
        half = len(ids) // 2
        left = first_wrong(ids[:half])
        return first_wrong(ids[half:]) if left is None else left
    for start in range(0, count + BEYOND, SPELLED_AT_ONCE):
        wrong = first_wrong(list(range(start, min(start + SPELLED_AT_ONCE, count + BEYOND))))
        if wrong is not None:
            raise TokenizerMismatch(
                f"token id {wrong} is {tokenizer.decode([wrong])!r} to the tokenizer given and {theirs([wrong])!r} to "
                f"{model}'s server: set `tokenizer` to the folder of the model that is served")


def abilities(engine: ServerEngine) -> dict:
    """{route, max_top_k, processed} of the server behind an engine, which takes the route from then on.

    Raises: EngineError where log-probabilities of prompt tokens are not given.
    """
    def gives(top_k: int, declining: set[int]) -> bool:
        request = engine.scoring([0], [0], top_k)
        try:
            engine.replicas.ask(Request(path=request.path, body=request.body, read=lambda answer: answer["choices"]))
        except Declined as declined:
            if declined.status not in declining:
                raise
            return False
        return True
    engine.route = "tokens"
    if not gives(0, {403, 404, 405, 501}):
        engine.route = "completions"
    scoring = engine.scoring([0], [0], 0)
    answer = engine.replicas.ask(Request(path=scoring.path, body=scoring.body, read=lambda answer: answer))
    try:
        scoring.read(answer)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EngineError(f"{engine.model}'s server gives no log-probabilities of prompt tokens, or no token ids "
                          f"({type(error).__name__}: {error}): serve the model with vLLM 0.32 or later") from error
    low, high = 0, min(MOST_TOP_K, engine.vocabulary)
    low = high if gives(high, {400}) else 0
    while high - low > 1:  # gives(low), not gives(high)
        middle = (low + high) // 2
        low, high = (middle, high) if gives(middle, {400}) else (low, middle)
    # of a distribution that is a point mass, processed log-probabilities are 0
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 1, "max_new_tokens": 1}
    written = engine.generate([[i] for i in range(3)], sampling, [0, 0, 0])
    processed = all(abs(lp) < 1e-6 for completion in written for lp in completion.logprobs)
    return {"route": engine.route, "max_top_k": low, "processed": processed}


def canary_of(engine: ServerEngine) -> dict:
    """A few completions that the model writes after ids spread over its vocabulary, and its log-probabilities."""
    count, prompts, completions = engine.vocabulary, [], []
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": CANARY_TOKENS}
    while sum(map(len, completions)) < CANARY_AT_LEAST:  # of a model that ends at once, more of them
        seeds = range(len(prompts), len(prompts) + CANARY_PROMPTS)
        more = [[(n * 7919 + i * count // 8) % count for i in range(8)] for n in seeds]
        written = engine.generate(more, sampling, list(seeds))
        prompts, completions = prompts + more, completions + [completion.token_ids for completion in written]
    signals = engine.score(prompts, completions, Want())
    return {"prompts": prompts, "completions": completions, "logprobs": [s.sampled.tolist() for s in signals]}
