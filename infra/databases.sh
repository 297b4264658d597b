#!/bin/sh
# Makes a role and a database each for Prefect and MLflow. PostgreSQL's image runs it once, on an empty data folder.
# Passwords are read by psql itself, so that none stands on a command line.
set -eu
for name in prefect mlflow; do
    password=$(cat "${SECRETS:-/run/secrets}/${name}_db_password") name=$name psql --no-psqlrc --quiet \
        --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv name name
\getenv password password
create role :"name" login password :'password';
create database :"name" owner :"name";
revoke connect on database :"name" from public;
SQL
done
