"""What a refresh decides over: which prompts are new, how far they drifted, whether a candidate is better. No torch.

failpoints  where a test kills a refresh
rows        prompts that came in, known by the hash of their contents
journal     what was decided, tick by tick; which prompts were taken
drift       how far new prompts, teacher and champion are from before
decision    skip, refresh or alarm, and why
planning    what the next tick trains on, and its recipe
models      the weights of registered versions, where nothing removes them
candidates  what became of a tick: kept weights, the gate's table, lineage
evidence    what a gate looks at, read from artifacts
gate        the checks of a candidate, as a table
"""
