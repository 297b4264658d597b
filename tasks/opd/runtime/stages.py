"""The stages by name, each with the module and the function that make its files. Nothing is imported here."""
STAGES = {
    "model": "makers.models:make_model",
    "context": "scoring.contexts:check_context",
    "prompts": "data.prompts:make_prompts",
    "joined_prompts": "data.prompts:join_prompts",
    "rollouts": "rollouts.writers:write_rollouts",
    "grades": "rollouts.grading:grade_rollouts",
    "refined": "rollouts.refiners:refine_rollouts",
    "scores": "scoring.score:score_rollouts",
    "checkpoint": "training.round:train_student",
    "exposure": "data.exposure:measure_exposure",
    "report": "evaluation.benchmarks:evaluate",
    "divergence": "evaluation.teacher_divergence:measure_divergence",
    "preflight": "training.preflight:preflight",
}  # stage -> module of tasks.opd, and the function in it


def entry_of(stage: str) -> tuple[str, str]:
    """The module and the function of a stage: a name in STAGES, or `package.module:function` in full.

    Raises: ValueError for any other name.
    """
    module, _, function = STAGES.get(stage, stage).partition(":")
    if not function:
        raise ValueError(f"stage is {stage!r}; allowed: {', '.join(STAGES)}, or package.module:function")
    return f"tasks.opd.{module}" if stage in STAGES else module, function
