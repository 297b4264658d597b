"""The flows behind the forms of Prefect's pages: a check, the flow that `opd` runs too, and the verdict as its end.

distill   a variant, with one seed or several
compare   a suite
refresh   a refresh, by its schedule or by hand
evaluate  a model folder
"""
