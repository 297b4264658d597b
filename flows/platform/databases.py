"""PostgreSQL: both servers in one database, each in a schema of its own, for both keep a table `alembic_version`."""
from flows.platform.servers import with_driver
from flows.platform.settings import PlatformError


def ensure_schemas(url: str) -> None:
    """Make what both servers need in the database. Raises PlatformError naming what is wrong with it."""
    import sqlalchemy
    try:
        engine = sqlalchemy.create_engine(with_driver(url, "postgresql+psycopg2"), connect_args={"connect_timeout": 10})
        with engine.begin() as connection:
            for statement in ("CREATE SCHEMA IF NOT EXISTS prefect", "CREATE SCHEMA IF NOT EXISTS mlflow",
                              "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public"):
                connection.execute(sqlalchemy.text(statement))
    except ModuleNotFoundError as error:
        raise PlatformError("PostgreSQL needs its driver: "
                            "pip install -e '.[postgres]' -c infra/constraints.txt") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise PlatformError(f"the database is not usable: {reason}. It must exist, and its user may create schemas "
                            "and the extension pg_trgm in it") from error
