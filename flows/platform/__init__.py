"""The platform of an OPD_HOME: Prefect's and MLflow's servers, a worker, and the keeper that keeps them running.

settings     what it is: addresses, database, slots, passwords
processes    processes by start time, environment and ancestry
ports        which are taken, and by whom
children     its processes: started, recorded, stopped
api          requests to its servers
servers      the commands and environments of its children
prefect_server  Prefect's server with transactions that wait for their turn in SQLite
databases    schemas in PostgreSQL
pools        the work pool, one slot a device
automations  what Prefect does by itself: runs without a heartbeat, runs that failed
reconcile    runs that claim to be at work without a process, slots that nobody holds
keeper       restarts what died, reconciles
lifecycle    up and down
state        what runs, for commands that use it and people that ask
"""
