"""Where models come from.

models       folder, hub, package, server, pruned, random, the tiny pair; the stage `model`
pretraining  how the tiny pair learns its task
"""
