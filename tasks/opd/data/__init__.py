"""Questions and the worth of answers.

numerals numbers as people write them
answers  where in a completion its answer stands
sources  where questions come from, and the stage `prompts`
graders  a completion compared with the truth
tiny     the tiny task: word problems made here
"""
