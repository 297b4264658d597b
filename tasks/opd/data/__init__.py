"""Questions and the worth of answers.

sources  where questions come from, and the stage `prompts`
graders  a completion compared with the truth
tiny     the tiny task: word problems made here
"""
