"""The rooms of opdlab: plain Python and torch. No Prefect, no MLflow; everything here runs on a bare GPU machine."""
