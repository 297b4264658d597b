"""MLflow: every stage's numbers and records, shipped by a thread that nobody waits for.

client    the store and its client; the only module that imports mlflow
outbox    one run and what is shipped to it
points    a finished stage as points and tables
runs      which run a flow's work belongs to
registry  versions of refreshed models, and which of them is the champion
"""
