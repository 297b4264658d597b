"""What may be said of questions: sources of training prompts, and benchmarks with how they are answered."""
from pydantic import model_validator

from tasks.opd.recipe.settings import Model, Name, Slot, setting


class Sampling(Model):
    """The distribution tokens are drawn from."""
    temperature: float = setting(1.0, "Temperature", "Divides the logits when sampling; 0 is greedy.", ge=0, le=10)
    top_p: float = setting(1.0, "Top-p", "Nucleus: smallest set of tokens with this mass; 1 is off.", gt=0, le=1)
    top_k: int = setting(0, "Top-k", "Sample among the k likeliest tokens; 0 is off.", ge=0)
    max_new_tokens: int = setting(
        96, "Completion limit", "Tokens a completion may have, EOS included.", ge=1, le=131072)


class Source(Model):
    """Questions with known answers: a slice of a source, and who grades the answers."""
    name: Name = setting(..., "Name", "Name under which metrics and samples appear.")
    source: Slot = setting(..., "Source", "Where questions come from: tiny, reasoning_gym, jsonl, hub.")
    first: int = setting(0, "First index", "Index in the source of the first question.", ge=0)
    count: int = setting(..., "Count", "How many questions.", ge=1)
    max_prompt_tokens: int = setting(256, "Prompt limit", "Longer prompts are quarantined, with the reason.", ge=1)
    max_quarantined: float = setting(
        0.5, "Quarantine limit", "Share of its questions that may be unfit, for whatever reason; more is an error.",
        ge=0, le=1)
    domain: str = setting("", "Domain", "The domain of all its prompts; empty: what the source says.")
    grader: Slot = setting(
        ..., "Grader", "Compares an answer with the truth: exact, numeric, math, reasoning_gym, tiny.")


class ExtraPrompts(Source):
    """Further training prompts, of which every round takes so many beside its others."""
    per_round: int = setting(..., "A round", "Prompts taken from these in each round.", ge=1)
    grader: Slot | None = setting(None, "Grader", "As for prompts; null: what is written has no reward.")


class Benchmark(Source):
    """A source of held-out questions and how often each is answered."""
    samples: int = setting(1, "Samples", "Completions per question.", ge=1)
    pass_at: list[int] = setting([1], "pass@k", "Values of k for the unbiased pass@k; at most `samples`.")
    sampling: Sampling = setting(Sampling(), "Sampling", "The distribution of the evaluation.")
    max_contaminated: float = setting(
        0.2, "Contamination limit", "Share of its questions that may stand in prompts, solutions or rollouts trained "
        "on: 80 % of their words in runs of 13 that are there too, of no more than 10 prompts; more is an error.",
        ge=0, le=1)
    divergence_max_tokens: int = setting(
        262144, "Divergence tokens", "Tokens of answers that the divergence to the teacher is computed over, at most; "
        "0: all.", ge=0)

    @model_validator(mode="after")
    def pass_at_fits(self):
        if any(not 1 <= k <= self.samples for k in self.pass_at):
            raise ValueError(f"pass_at {self.pass_at} must lie between 1 and samples = {self.samples}; raise samples")
        return self
