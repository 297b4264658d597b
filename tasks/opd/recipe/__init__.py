"""What a run is to do: YAML, schema, slots, static checks. No torch.

settings      a field of the schema, and whether it may change a result; a slot
questions     sources of prompts and benchmarks, as the schema has them
controllers   what moves a setting after each round
schedule      patches that begin later and controllers, resolved to a round's recipe
schema        every setting with title, unit and bounds
suite         recipes compared
slots         which module and table serve a slot; parameters held against signatures
layers        settings with who set each key
loading       recipes and suites from YAML and key=value
registered    the benchmarks of configs/benchmarks, and which are at hand
tuning        the trials of a suite that tunes its variants
refreshes     what is distilled again, when, and what the gate asks
validation    plain data held against schema, slots and checks
requirements  what the terms ask of which models
budgets       what of a budget is spent, and what a round may still write
derivations   what of a stage's spec can change its result: settings, and the code it chooses
catalogue     the variants as tables
checks        what can be said of a recipe without models
"""
