"""What can be said of a recipe without models.

recipes  combinations that are silently wrong, and the report of `opd check`
terms    the same for a single term
servers  models behind servers
"""
