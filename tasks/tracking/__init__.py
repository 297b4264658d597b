"""MLflow: every stage's numbers and records, shipped by a thread that nobody waits for.

about     how a run is presented
client    the store and its client; the only module that imports mlflow
machine   CPU, memory and GPU, sampled
outages   what is wrong with MLflow, in a sentence
outbox    one run and what is shipped to it
params    a recipe as parameters, and how runs of other settings are told apart
points    a finished stage as points and tables
registry  versions of refreshed models, and which of them is the champion
runs      which run a flow's work belongs to
shipping  points and files in portions, and which of them a run holds
shown     a note, numbers and tags on a run's page, for those of before
states    what was sent, written down
view      the view that links open: runs side by side, charts, columns
"""
