"""The one schema of a run: what a recipe may say, with title, meaning, unit and bounds beside every field.

Pydantic only: no torch, no OmegaConf (files are read in `loading`). Models are frozen, unknown keys are refused, and no
field is a union of models, so that Prefect can draw a form from `Recipe`. A `Slot` names one choice of a slot's table
and its parameters; `slots.bind` checks both against the function's signature without importing torch.
"""
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import field_validator, model_validator

from tasks.opd.recipe import schedule
from tasks.opd.recipe.questions import Benchmark, ExtraPrompts, Sampling, Source
from tasks.opd.recipe.settings import Model, Name, Slot, setting


class About(Model):
    """Where a variant comes from; shown by `opd variants`."""
    paper: str = setting("", "Paper", "Authors and year, or 'control' for a placebo.")
    arxiv: str = setting("", "arXiv id", "For example 2306.13649; empty when there is none.")
    idea: str = setting("", "Idea", "One line: what this variant changes.")
    cost: str = setting("", "Cost", "What it takes beyond vanilla on-policy distillation, in one line.")
    placebo: str = setting("", "Placebo", "The control that this variant must beat; empty for controls.")
    reconstruction: bool = setting(False, "Reconstruction", "True when a value or formula was not found in the paper.")


class Pair(Model):
    """The models. Each is a slot that says how the model comes to be: a folder, a hub id, or made here as a stage."""
    name: Name = setting(..., "Name", "Name of the pair.")
    student: Slot = setting(..., "Student", "The model trained.")
    teacher: Slot = setting(..., "Teacher", "The model imitated.")
    others: dict[str, Slot] = setting({}, "Other models", "Further models by name (references, more teachers).")
    experts: dict[str, str] = setting(
        {}, "Experts", "Domain of a prompt -> the model that knows it; for teacher.model routed and mixed.")
    tiny: bool = setting(False, "Tiny", "These models are toys: a variant's own `tiny` settings apply.")
    context_tokens: int = setting(512, "Context", "Tokens a prompt and its completion may fill together.", ge=8)


class Writer(Slot):
    """Who writes completions, how many, and for which share of the prompts."""
    n: int = setting(1, "Samples per prompt", "Completions this writer gives each of its prompts.", ge=1)
    fraction: float = setting(1.0, "Fraction", "Share of a round's prompts this writer gets.", gt=0, le=1)
    domains: list[str] = setting([], "Domains", "It writes for prompts of these domains; empty: all.")
    when: Literal["always", "first_round"] = setting(
        "always", "When", "In which rounds it writes; later rounds re-use.")


class Rollout(Model):
    """How completions come to be."""
    prompts_per_round: int = setting(
        128, "Prompts a round", "Prompts taken from the training prompts each round.", ge=1)
    sampling: Sampling = setting(Sampling(), "Sampling", "The distribution the writers sample from.")
    writers: list[Writer] = setting([Writer(name="student")], "Writers", "Who writes the completions.", min_length=1)
    filters: list[Slot] = setting(
        [], "Filters", "Which rollouts are unfit to learn from; each drop is kept and counted.")


class Teacher(Model):
    """Whose distribution is aimed at, and what that model sees."""
    model: str = setting("teacher", "Model", "A model of the pair by name; self: the student's own "
                         "weights; routed: the prompt's domain's expert; mixed: all experts in equal parts.")
    refresh: Slot = setting(
        Slot(name="frozen"), "Refresh", "For `self`: frozen (the start), live (round's start), ema.")
    context: Slot = setting(
        Slot(name="same"), "Context", "What the teacher sees instead of the prompt: same, solution, "
        "demonstration, sibling, experience.")


class Clip(Model):
    """What is cut off a divergence."""
    at: Literal["none", "entry", "position"] = setting(
        "none", "Where", "entry: each vocabulary entry before the sum; position: the sum at a token.")
    limit: float = setting(1.0, "Limit", "Upper bound, nats.", gt=0)


class Term(Model):
    """One summand of the loss."""
    coefficient: float = setting(1.0, "Coefficient", "Multiplies the term.")
    rows: Slot = setting(Slot(name="sampled"), "Rows", "Which rollouts: all, sampled, golden, succeeded, failed, "
        "mixed_groups, likely_to_teacher.")
    domains: list[str] = setting([], "Domains", "Only rollouts of prompts of these domains; empty: all.")
    target: Slot = setting(Slot(name="teacher"), "Target", "Which distribution is aimed at.")
    support: Slot = setting(
        Slot(name="sampled"), "Support", "Where it is compared: sampled, full, teacher_top_k, "
        "student_top_k, union, intersection.")
    divergence: Slot | None = setting(None, "Divergence", "How far apart; exclusive with advantage.")
    advantage: Slot | None = setting(None, "Advantage", "What a token is worth; exclusive with divergence.")
    estimator: Slot = setting(Slot(name="exact"), "Estimator", "How it becomes a gradient.")
    clip: Clip = setting(Clip(), "Clip", "What is cut off the divergence.")
    weights: list[Slot] = setting([Slot(name="uniform")], "Weights", "Which tokens count, and how much; multiplied.")
    reduction: Slot = setting(Slot(name="token"), "Reduction", "How token losses become one number: token, sequence, "
        "prompt, domain, sum, constant, rollout_sum.")
    denominator: str = setting(
        "valid", "Denominator", "Tokens divided by: valid, kept (weight > 0), weighted (sum of weights), or a name "
        "that terms share.")

    @model_validator(mode="after")
    def one_signal(self):
        if (self.divergence is None) == (self.advantage is None):
            raise ValueError("a term has either a divergence or an advantage: give exactly one of them")
        return self


class Loss(Model):
    """What all terms share."""
    temperature: float = setting(
        1.0, "Loss temperature", "Divides student and teacher logits in the loss; no tau^2.", gt=0)


class Lora(Model):
    """A small adapter that learns in place of the weights. It has no dropout: old log-probabilities must repeat."""
    rank: int = setting(16, "Rank", "Columns of B and rows of A, beside each matrix.", ge=1, le=512)
    alpha: float = setting(32.0, "Alpha", "The adapter's output counts alpha / rank.", gt=0)
    targets: list[str] = setting(
        [], "Targets", "Names of linear layers, q_proj for example; empty: all of the body.")


class Train(Model):
    """The optimizer and its memory."""
    learning_rate: float = setting(1e-5, "Learning rate", "Peak learning rate of AdamW.", gt=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Schedule", "Decay to 0 over the run: over its budget where there is one, else over the rounds.")
    warmup_steps: int = setting(0, "Warm-up", "Optimizer steps from 0 to the peak.", ge=0)
    weight_decay: float = setting(0.0, "Weight decay", "AdamW's, on matrices only.", ge=0)
    beta1: float = setting(0.9, "Beta 1", "AdamW.", ge=0, lt=1)
    beta2: float = setting(0.95, "Beta 2", "AdamW.", ge=0, lt=1)
    epsilon: float = setting(1e-8, "Epsilon", "AdamW.", gt=0)
    max_grad_norm: float = setting(1.0, "Gradient clip", "Largest norm of the whole gradient.", gt=0)
    epochs: int = setting(1, "Epochs", "Passes over a round's scored rollouts.", ge=1)
    batch_rollouts: int = setting(0, "Optimizer batch", "Rollouts an optimizer step; 0: all of the round.", ge=0)
    micro_batch_tokens: int = setting(
        8192, "Micro-batch", "Tokens forwarded at once; moves the gradient by rounding only: 2e-6 of it in "
        "float32, 1 % under bfloat16 autocast, where another value makes another checkpoint.", effort="batch", ge=1)
    share_prompts: bool = setting(
        True, "Share prompts", "Completions of one prompt compute it once, in training and in scoring by torch, and no "
        "padding is computed; false: a padded row each. Moves results as another micro_batch_tokens does.",
        effort="machine")
    chunk_tokens: int = setting(
        1024, "Head chunk", "Tokens whose full-vocabulary logits live at once, at most; fewer where the vocabulary is "
        "large: 128 MiB of logits.", effort="batch", ge=1)
    autocast: Literal["auto", "off", "bfloat16"] = setting(
        "auto", "Autocast", "bfloat16 compute over float32 master weights.")
    gradient_checkpointing: bool = setting(False, "Recompute", "Recompute activations in the backward pass.")
    lora: Lora | None = setting(None, "LoRA", "Learn an adapter over frozen weights; null: all weights learn.")

    @field_validator("autocast", mode="before")
    @classmethod
    def off_is_a_word(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value


class Budget(Model):
    """What a run may spend, in one currency, as its costs are counted (`core.costs`); 0: none, all rounds are made.

    Trained tokens are met exactly, the last batch is cut to fit. Of tokens written or read the last round's rollouts
    are cut to fit, so they are met exactly unless a refiner writes or reads more, or a teacher reads not all that was
    written. Seconds end a run with the first round past them: how many rounds that are depends on the machine, so such
    a run cannot be reproduced from its recipe; resumed, it goes on by the seconds that its records have.
    """
    trained_tokens: int = setting(0, "Trained tokens", "Tokens trained on.", ge=0)
    student_written_tokens: int = setting(0, "Student-written tokens", "Tokens the student writes.", ge=0)
    teacher_written_tokens: int = setting(0, "Teacher-written tokens", "Tokens the teacher writes.", ge=0)
    teacher_read_tokens: int = setting(0, "Teacher-read tokens", "Tokens teachers and references read.", ge=0)
    seconds: float = setting(0.0, "Seconds", "In which rounds are made; not reproducible.", ge=0)

    @model_validator(mode="after")
    def one_currency(self):
        if len(given := [name for name, amount in self if amount]) > 1:
            raise ValueError(f"a budget is in one currency: leave one of {', '.join(given)} and set the others to 0")
        return self


class Engine(Model):
    """What generates and scores."""
    name: Literal["torch", "vllm"] = setting("torch", "Engine", "torch: transformers in process; vllm: vLLM.")
    scores: Literal["same", "torch"] = setting(
        "same", "Scoring engine", "same: the engine above; torch: transformers, for what vLLM cannot give.")
    dtype: Literal["float32", "bfloat16", "float64"] = setting("float32", "Precision", "Of the engine's weights.")
    batch_tokens: int = setting(
        65536, "Batch", "Tokens in flight at once; never changes results beyond rounding.", effort="batch", ge=1)
    memory_share: float = setting(
        0.4, "Memory share", "Of a GPU's memory that a vLLM engine takes; on a CPU batch_tokens decides.",
        effort="machine", gt=0, lt=1)
    patience_seconds: int = setting(
        1800, "Patience", "Seconds without progress after which a worker counts as hung.", effort="machine", ge=1)


class EngineInUse(Engine):
    """What a stage is told of an engine: the recipe's settings, and the room that its sequences and adapters take."""
    lora_rank: int = setting(0, "Adapter rank", "Largest rank of an adapter; 0: none.", effort="machine", ge=0)
    share_prompts: bool = setting(True, "Share prompts", "Of completions scored, see train.", effort="machine")
    longest_tokens: int = setting(..., "Longest", "Tokens of the longest sequence.", effort="machine", ge=1)


class Patch(Model):
    """From this point of the run on, these settings."""
    round: int | None = setting(None, "Round", "First round the settings hold, counted from 0; or give `at`.", ge=0)
    at: float | None = setting(
        None, "At", "Share of the run behind from which they hold: of its budget, else of the rounds.",
        ge=0, lt=1)
    set: dict[str, Any] = setting(..., "Settings", "Dotted keys and values, as overrides on the command line.")

    @model_validator(mode="after")
    def one_start(self):
        if (self.round is None) == (self.at is None):
            raise ValueError("a patch holds from a round or from a share of the run on: give exactly one of round, at")
        return self


class Controller(Slot):
    """Moves one number after every round, by the records of the rounds before it; never out of its bounds."""
    moves: str = setting(..., "Moves", "The setting it moves, dotted; what the recipe says there holds in round 0.")
    low: float = setting(..., "Low", "Least value it may set.")
    high: float = setting(..., "High", "Largest value it may set.")


class Recipe(Model):
    """A whole run: distil a teacher into a student, round by round, then benchmark the student."""
    name: Name = setting(..., "Name", "Name of the variant.")
    about: About = setting(About(), "About", "Paper, arXiv id and idea.")
    seed: int = setting(0, "Seed", "All randomness derives from it.", ge=0, lt=2**31)
    rounds: int = setting(1, "Rounds", "Rollouts then update, this often.", ge=1)
    pair: Pair = setting(..., "Pair", "The models.")
    prompts: Source = setting(..., "Prompts", "The training prompts.")
    extra_prompts: list[ExtraPrompts] = setting(
        [], "Further prompts", "Of other sources: another domain, plain text for a language-modelling term.")
    rollout: Rollout = setting(Rollout(), "Rollouts", "How completions come to be.")
    refine: list[Slot] = setting([], "Refine", "Whether trajectories are repaired before learning.")
    teacher: Teacher = setting(Teacher(), "Teacher", "Whose distribution, under what context.")
    terms: list[Term] = setting(..., "Terms", "The loss is their sum.", min_length=1)
    loss: Loss = setting(Loss(), "Loss", "What all terms share.")
    train: Train = setting(Train(), "Training", "The optimizer and its memory.")
    engine: Engine = setting(Engine(), "Engine", "What generates and scores.")
    budget: Budget = setting(Budget(), "Budget", "What the run may spend, in one currency.")
    benchmarks: list[Benchmark] = setting([], "Benchmarks", "Held-out questions, before and after.")
    evaluate_every: int = setting(
        0, "Evaluate every", "Rounds between two evaluations on the way; 0: at the start and the end only.", ge=0)
    schedule: list[Patch] = setting([], "Schedule", "What changes as it goes.")
    controllers: list[Controller] = setting(
        [], "Controllers", "What changes by the results of finished rounds, and how far.", max_length=4)
    workers: Literal["process", "inline"] = setting(
        "process", "Workers", "process: a supervised worker; inline: in the flow.")
    accepts: dict[str, str] = setting(
        {}, "Accepts", "Findings of the checks that this variant intends, each with the reason; an empty "
        "reason takes it back.")
    keep_hidden: bool = setting(False, "Keep hidden states", "Keep the teacher's hidden states after their round.")

    @field_validator("benchmarks")
    @classmethod
    def distinct(cls, value):
        names = [b.name for b in value]
        if len(set(names)) != len(names):
            raise ValueError(f"benchmark names must differ, got {names}")
        return value

    @model_validator(mode="after")
    def sources_are_distinct(self):
        names = [source.name for source in self.training_sources().values()]
        if len(set(names)) != len(names):
            raise ValueError(f"names of prompts and extra_prompts must differ, got {names}")
        return self

    def training_sources(self) -> dict[str, Source]:
        """All sources of training prompts, by where the recipe names them."""
        return {"prompts": self.prompts} | {f"extra_prompts.{i}": some for i, some in enumerate(self.extra_prompts)}

    def prompts_per_round(self) -> dict[str, int]:
        """Name of each source of training prompts -> how many of its prompts a round takes."""
        return {self.prompts.name: self.rollout.prompts_per_round} | {
            some.name: some.per_round for some in self.extra_prompts}

    def graders(self) -> dict[str, dict]:
        """Name of each source of training prompts -> its grader as plain data; sources without one are left out."""
        return {source.name: source.grader.model_dump(mode="json") for source in self.training_sources().values()
                if source.grader}

    def engine_for(self, use: Literal["write", "score"]) -> dict[str, Any]:
        """What a stage is told of the engine that writes its completions, or scores them."""
        name = "torch" if use == "score" and self.engine.scores == "torch" else self.engine.name
        longest = self.pair.context_tokens + 1  # scoring takes room for one token more
        in_use = EngineInUse(**self.engine.model_dump() | {
            "name": name, "lora_rank": self.train.lora.rank if self.train.lora else 0, "longest_tokens": longest,
            "share_prompts": self.train.share_prompts})
        return in_use.model_dump(mode="json", exclude={"scores"})

    def at(self, round_index: int, history: Sequence[dict] = ()) -> "Recipe":
        """The recipe of a round: with the patches that have begun, then with what the controllers decide.

        `history` holds the records of the rounds before (`tasks.history.round_record`), the first first.
        Raises: ValueError when controllers or a budget need a record that is not there.
        """
        return Recipe.model_validate(schedule.resolved(self.model_dump(mode="json"), round_index, history))

    def versions(self) -> list["Recipe"]:
        """What the schedule makes of this recipe, from the start on; what controllers set is as at the start."""
        return [Recipe.model_validate(data) for _, data in schedule.versions(self.model_dump(mode="json"))]
