"""One self-contained HTML file a suite and a run, from what the store holds. No torch.

lineage      a run's record as its rounds and evaluations
curves       learning curves and maps of position by round
prompts      questions as text, answers to them, and which of them a variant gained or lost
tokens       rollouts token by token, as pages show them
recipes      what recipes say differently
checklist    what a run's lineage answers of the questions that every result is asked
verdicts     a comparison in words
suites       what a suite's page shows
runs         what a run's page shows
page         HTML of it, in one file that asks nobody for anything
"""
