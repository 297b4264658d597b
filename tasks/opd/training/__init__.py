"""From a scored set to a checkpoint.

batching    optimizer batches
forward     body micro-batch by micro-batch, head chunk by chunk
prepass     columns before the first optimizer step
scored_set  rollouts and signals laid flat
diagnostics whether a round's signal can be trusted, by position
kept_tokens weights and advantages of single tokens, kept for whoever reads rollouts
repetition  how much of the rollouts repeats itself
trainer     weights, AdamW, moving average; saved and resumed exactly
round       the stage `checkpoint`
read_student the student over a few rollouts that its body reads once
alignment   whether a teacher's signal stands at its tokens
preflight   red or green before a run
"""
