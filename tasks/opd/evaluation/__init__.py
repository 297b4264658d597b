"""How good a student is, and which variant is better.

benchmarks          answers, graded; the stage `report`
teacher_divergence  exact divergence to the teacher on the student's own answers
cell_costs          what a cell cost in tokens, seconds and bytes
comparison          variants paired over prompts
"""
