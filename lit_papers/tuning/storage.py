"""Where studies are kept: any database that Optuna takes."""

import re
import time
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

LOCK_TIMEOUT = 20  # seconds that SQLite waits for another process; its own 5 are short for a network drive
HEARTBEAT = 60  # seconds between the signs of life of a running trial
PATIENCE = 3 * HEARTBEAT  # silent for so long, its machine is taken to be gone
_TRIES = 5
_DRIVERS = {"postgresql": "psycopg"}  # the one that the extra brings; SQLAlchemy's default is another


class StorageError(ValueError):
    """The database of a study cannot be used; the message says which, without its password."""


def one_at_a_time(url: str) -> "AbstractContextManager[object]":
    """What one process alone is in, of all that use a database: SQLite locks no rows, so two could take one trial.

    Args:
        url: of the database; others than SQLite's files lock rows, and need nothing.
    """
    from filelock import FileLock
    from sqlalchemy.engine import make_url

    parts = make_url(url)
    if parts.get_backend_name() != "sqlite" or parts.database in (None, "", ":memory:"):
        return nullcontext()
    return FileLock(f"{parts.database}.claims")  # the system frees it however its holder ends


def open_storage(url: str, on_stale: "Callable[[Study, FrozenTrial], None] | None" = None) -> "RDBStorage":
    """Open the database of a study, and make its tables if it is new.

    Args:
        url: such as ``sqlite:///study.db`` or ``postgresql://user@host/database``.
        on_stale: called with each trial whose search has not been heard of for long, once it is marked as failed.

    Raises:
        optuna.exceptions.StorageInternalError: the database is locked or cannot be reached.
        sqlalchemy.exc.SQLAlchemyError: likewise, or the URL is malformed.
        ImportError: the driver of that kind of database is not installed.
    """
    from optuna.exceptions import ExperimentalWarning, StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    kind, separator, rest = url.partition("://")
    if separator and kind in _DRIVERS:
        url = f"{kind}+{_DRIVERS[kind]}://{rest}"
    options = {"connect_args": {"timeout": LOCK_TIMEOUT}} if kind.startswith("sqlite") else None
    for attempt in range(_TRIES):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # so it calls the heartbeat
                return RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=PATIENCE,
                    heartbeat_stale_trial_callback=on_stale,
                )
        except (SQLAlchemyError, StorageInternalError) as error:
            # two searches that begin together both make the tables of a new database; the other one is done soon
            is_made = re.search("already exists|duplicate key|UNIQUE constraint", f"{error} {error.__cause__}")
            if not is_made or attempt == _TRIES - 1:
                raise
            time.sleep(0.5)
    raise AssertionError("the loop above returns or raises")
