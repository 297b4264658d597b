"""Who makes the files of stages, and how worker processes start.

launchers  the command, the environment and the connection of a worker process
pools      pools of workers: inline, or a process under a supervisor
"""
