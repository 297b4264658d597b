"""Models as folders and as tensors in memory.

weights     which files and tensors are a folder's model
folders     architecture, ids that end, vocabulary, base model
tokenizers  a question as ids, which ids there are, control tokens, text that may be shown
templates   whether a chat template shows what it is given
heads       a model in two parts: body and head
packing     prompts with completions through a body, a shared prompt once
lora        adapters on a base
attention   query heads, and completions, that share keys
digests     hashes of tensors, written by who saves and compared by who loads
"""
