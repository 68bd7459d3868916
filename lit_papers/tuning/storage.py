"""Where studies are kept: any database that Optuna takes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

LOCK_TIMEOUT = 20  # seconds that SQLite waits for another process; its own 5 are short for a network drive


def open_storage(url: str) -> "RDBStorage":
    """Open the database of a study, and make its tables if it is new.

    Args:
        url: such as ``sqlite:///study.db`` or ``postgresql://user@host/database``.

    Raises:
        optuna.exceptions.StorageInternalError: the database is locked or cannot be reached.
        sqlalchemy.exc.SQLAlchemyError: likewise, or the URL is malformed.
        ImportError: the driver of that kind of database is not installed.
    """
    from optuna.storages import RDBStorage

    is_sqlite = url.startswith("sqlite")
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT}} if is_sqlite else None)
