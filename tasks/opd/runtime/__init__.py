"""The process in which stages run.

stages      stage name -> function
worker      takes commands, makes files
supervisor  so that nothing of a run outlives it
"""
