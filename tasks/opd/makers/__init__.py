"""Where models come from.

gguf         GGUF files, whole or in parts, with what they say of their tokens
hub          a model of the Hugging Face hub, and what to do when it cannot be had
outside      folders from outside, and which of them are refused
kinds        prompts of the bench's mixture, as a run renders them
mixture      how the bench's models learn to use their prompt
models       folder, hub, GGUF, package, server, pruned, random, the tiny pair; the stage `model`
muon         the optimizer Muon in float32
reading      how a model reads a question, and what of that may not be meant
pretraining  how the tiny pair learns its task
"""
