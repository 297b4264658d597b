"""What stands between a form in Prefect's pages and a flow: fields, texts, registration, endings. No flow.

values        what was filled in -> the command line's own key=value
fields        the form's fields, with the choices that the files in configs offer
texts         what a deployment's page says: description and tags
refreshed     refreshes, promotion and rollback as deployments
registration  deployments on Prefect's server: added, updated, removed
verdicts      how a run ends: its state and its summary
"""
