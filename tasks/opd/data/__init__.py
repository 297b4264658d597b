"""Questions and the worth of answers.

row_files rows of files as people bring them
fields    a row's fields as an item
sources   where questions come from
numerals  numbers as people write them
answers   where in a completion its answer stands
graders   a completion compared with the truth
contamination  how much of a benchmark stands in what is trained on
exposure  what benchmarks share with all that a student was trained on: the stage `exposure`
prompts   a slice of a source as prompts: the stage `prompts`
tiny      the tiny task: word problems made here
tiny_long   the bench's long task: a number and many steps, in splits
tiny_bench  what the bench adds: words for every request, careless and faulty tries, lists to sort
"""
