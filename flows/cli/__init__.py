"""The console command `opd`, one module a group of commands.

main         the command line, exit codes
runs         distill, compare, evaluate, bootstrap
recipes      check, variants
deployments  deploy
platform     up, status, down, logs
store        gc
jobs         jobs: a suite's cells for a cluster
machine      doctor
"""
