"""Who writes completions, which are fit to learn from, and how they are repaired.

limits        rollouts cut to fit into what a budget leaves
writers       student, teacher, dataset; the stage `rollouts`
filters       why a rollout goes
grading       the stage `grades`
refiners      the table of refiners; the stage `refined`
trd           the teacher rewrites trajectories
interleaving  SKD and relays: the rules
turns         student and teacher write in turns, whole batches at a time
"""
