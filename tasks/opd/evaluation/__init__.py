"""How good a student is, and which variant is better.

benchmarks          answers, graded; the stage `report`
cell_costs          what a cell cost in tokens, seconds and bytes
spending            what rounds spent of a budget
leakage             answers that speak of what only the teacher saw
teacher_divergence  exact divergence to the teacher on the student's own answers; the stage `divergence`
findings            what a run's numbers say is going wrong
reports             what a report says
final               what a run reached and cost, in a dozen numbers
clusters            which prompts are kin
statistics          intervals over seeds and prompts, many comparisons, what can be detected
seed_pools          the variance between seeds that all variants of a suite share
power               what a suite can detect, before it runs
tuned               what tuning found, and what it cost
comparison          variants paired over prompts and seeds
pass_curves         pass@k over k against the baseline
comparison_tables   a comparison as text
report              pages of suites and runs
"""
