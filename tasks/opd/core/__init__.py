"""What everything stands on: errors, records, files, seeds, metrics, costs. No torch.

addresses addresses without their passwords
batches   rows that go through a model together, tokens through its head
costs     tokens written, read and trained on: names and sums
entries   an entry of a slot's table: a function and what is known of it
errors    what can go wrong, each with its exit code
files     writing durably to a disk that may be full; hashes, locks, folder versions
metrics   a stage's metrics.jsonl
progress  how far a stage is
records   Prompt, Rollout, Sample and their Parquet files
seeds     seeds derived by hashing
streams   standard error that nobody reads any more
tables    tables as text: Markdown, or aligned for a terminal
token_columns what training made of single tokens: some rollouts' weights and advantages
"""
