"""MLflow: every stage's numbers and records, shipped by a thread that nobody waits for.

client    the store and its client; the only module that imports mlflow
machine   CPU, memory and GPU, sampled
outbox    one run and what is shipped to it
params    a recipe as parameters, and how runs of other settings are told apart
points    a finished stage as points and tables
registry  versions of refreshed models, and which of them is the champion
runs      which run a flow's work belongs to
view      the view that links open: runs side by side, charts, columns
"""
