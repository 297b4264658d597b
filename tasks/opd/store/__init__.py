"""Artifacts: finished directories named by what made them. No torch.

artifacts      write, verify, retire and lock them
contents       a directory's files, compared with what was written
definitions    a module's source, definition by definition
references     what a piece of code reads
closures       the code that a function's result can depend on
fingerprints   the hash of all that can change one
hidden_states  made again without the rest of their scores
run_records    what every run refers to
garbage        what none of them refers to: found and removed
disk           how much of it artifacts take
trained       the rollouts and prompts behind a checkpoint
"""
