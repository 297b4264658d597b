"""What can be said of a recipe without models.

recipes    combinations that are silently wrong, and the report of `opd check`
terms      the same for a single term
schedules  patches and controllers: what changes as a run goes
servers    models behind servers
folders    models in folders on this machine
"""
