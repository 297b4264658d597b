"""The library, in packages that import only those before them: plain Python and torch.

No Prefect, no MLflow: everything here runs on a bare GPU machine. The order: core, store, recipe, models, engines,
data, makers, rollouts, scoring, objective, training, evaluation, runtime.
"""
