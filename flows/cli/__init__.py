"""The console command `opd`, one module a group of commands.

main         the command line, exit codes
runs         distill, compare, evaluate, bootstrap
recipes      check, variants
deployments  deploy
store        gc
machine      doctor
"""
