"""Finding or creating the MLflow store, once, in the driver, before any worker opens it.

A fresh SQLite database that several processes open at the same moment is ruined for good: each of them starts
the schema migration. So `prepare_store` creates or upgrades it under a file lock and hands out an absolute
URI, because workers and jobs run in other folders. Write-ahead logging makes several writers bearable; it
needs shared memory, so on a network file system it stays off.
"""

from __future__ import annotations

import logging
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from filelock import FileLock, Timeout

from cosa_dist.config.paths import absolute

log = logging.getLogger(__name__)

SQLITE, MEMORY = "sqlite:///", ":memory:"
SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "smbfs", "ceph"}
    | {"fuse.sshfs", "9p", "afs", "panfs", "glusterfs"}
)


class StoreError(ValueError):
    """A tracking store that cannot be used; the message is one line for the user."""


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into a `StoreError` that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise StoreError(f"tracking store {without_password(uri)}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def prepare_store(uri: str | None, default_folder: Path, *, lock_seconds: float = 180.0) -> str:
    """Make the store ready for many processes and return its absolute URI.

    `uri` is an `http(s)://` server, a `sqlite:///` file (for relative ones see `absolute`), another database,
    or empty for `<default_folder>/mlflow.db`; locks of other databases lie in the folder too. Waits
    `lock_seconds` for another process that prepares the same store. Raises StoreError if the store cannot be
    reached, created or understood.
    """
    uri = check_store(uri, default_folder)
    if urlsplit(uri).scheme in SERVERS:
        return uri
    database = sqlite_path(uri) if uri.startswith(SQLITE) else Path(default_folder).resolve() / "mlflow"
    lock_file = database.with_name(f"{database.name}.lock")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(lock_file), timeout=lock_seconds):
            _create_or_upgrade(uri, artifact_location(uri) or str(database.parent / "artifacts"))
    except Timeout as error:
        raise StoreError(
            f"tracking store {without_password(uri)}: another process has held {lock_file} for "
            f"{lock_seconds:.0f} s; if none is running, delete that file"
        ) from error
    except StoreError:
        raise
    except Exception as error:  # SQLAlchemy's errors are of many kinds
        raise StoreError(f"tracking store {without_password(uri)}: {first_line(error)}") from error
    return uri


def check_store(uri: str | None, default_folder: Path) -> str:
    """Return the absolute URI; of a server, only if it answers. Nothing is made.

    Raises StoreError for a kind of store or a path that is not supported, or a server that does not answer.
    """
    uri = resolve_uri(uri, default_folder)
    if urlsplit(uri).scheme in SERVERS:
        check_server(uri)
    return uri


def resolve_uri(uri: str | None, default_folder: Path) -> str:
    """Return the absolute URI without touching the store; StoreError for what is not supported."""
    if not uri:
        return sqlite_uri(Path(absolute(str(default_folder))) / "mlflow.db")
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in (*SERVERS, *DATABASES):
        return uri
    if scheme == "sqlite":
        name = uri.removeprefix(SQLITE)
        if not uri.startswith(SQLITE) or not name or name == MEMORY:
            raise StoreError(f"tracking URI {uri}: name a file, e.g. sqlite:///outputs/mlflow.db")
        return sqlite_uri(Path(absolute(name)))
    plain = scheme in ("file", "")
    reason = "MLflow has given up plain folders as stores" if plain else f"unknown kind {scheme!r}"
    raise StoreError(f"tracking URI {uri}: {reason}; use sqlite:///<file>.db or http(s)://<server>")


def sqlite_uri(path: Path) -> str:
    """URI of a SQLite file, with an absolute path.

    Raises StoreError for a path that MLflow and SQLAlchemy would each read in another way than it is written.
    """
    whole = str(Path(path).expanduser().resolve())
    if "?" in whole or unquote(whole) != whole:
        raise StoreError(
            f"tracking store {whole}: MLflow cannot keep its database below a path with '?' or an escape "
            "such as %20 in it: choose another folder (--output, COSA_ROOT), or give a server as "
            "--tracking.uri, or leave it out with --tracking.enabled false"
        )
    return SQLITE + whole


def sqlite_path(uri: str) -> Path:
    """File of a SQLite URI."""
    return Path(uri.removeprefix(SQLITE))


def artifact_location(uri: str) -> str | None:
    """Absolute place of the artifacts of a SQLite store; None where a server decides."""
    return (sqlite_path(uri).parent / "artifacts").as_uri() if uri.startswith(SQLITE) else None


def require_store(uri: str) -> None:
    """Check that a store exists and answers, without creating one; StoreError if it does not."""
    if uri.startswith(SQLITE) and not sqlite_path(uri).is_file():
        raise StoreError(f"no tracking store at {sqlite_path(uri)}: nothing was trained yet")
    if urlsplit(uri).scheme in SERVERS:
        check_server(uri)


def check_server(uri: str, seconds: float = 3.0) -> None:
    """Ask an MLflow server for its health; StoreError if it does not answer within `seconds` or refuses."""
    parts = urlsplit(uri)
    without_login = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        urllib.request.urlopen(f"{without_login.rstrip('/')}/health", timeout=seconds).close()
    except urllib.error.HTTPError as error:
        # Any answer means that something listens; hosted servers know no /health or want a login
        # that MLflow sends and this question does not.
        if error.code >= 500:
            place = without_password(uri)
            raise StoreError(f"tracking server {place} answers with error {error.code}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise StoreError(
            f"tracking server {without_password(uri)} does not answer ({reason}); start it with "
            "`mlflow server` or leave the URI empty for a local SQLite store"
        ) from error


def without_password(uri: str) -> str:
    """The URI for messages: without a password."""
    password = urlsplit(uri).password
    return uri if password is None else uri.replace(f":{password}@", ":***@", 1)


def _create_or_upgrade(uri: str, artifacts: str) -> None:
    """Bring the database to this MLflow's schema; the caller holds the lock."""
    from mlflow.exceptions import MlflowException

    if uri.startswith(SQLITE):
        path = sqlite_path(uri)
        if _has_tables(path):
            _upgrade(uri)
        else:
            # Built under another name: a start that is killed half-way leaves no half-made store.
            part = path.with_name(path.name + ".part")
            part.unlink(missing_ok=True)
            _create(sqlite_uri(part), artifacts)
            part.replace(path)
        _set_journal(path)
    try:
        _create(uri, artifacts)
    except MlflowException:  # all tables are there, of an older MLflow
        _upgrade(uri)
        _create(uri, artifacts)


def _create(uri: str, artifacts: str) -> None:
    """Open the database once, which creates the tables and the default experiment where they are missing."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifacts).engine.dispose()


def _upgrade(uri: str) -> None:
    """Upgrade the tables of an older MLflow, those of a SQLite file after a copy of it.

    MLflow itself offers this as a shell command only, and upgrades some stores unasked and without a copy.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils as database

    engine = database.create_sqlalchemy_engine_with_retry(uri)
    try:
        database._verify_schema(engine)
    except MlflowException:
        if uri.startswith(SQLITE):
            _back_up(sqlite_path(uri))
        database._upgrade_db(engine)
    finally:
        engine.dispose()


def _back_up(path: Path) -> None:
    copy = path.with_name(path.name + ".before-upgrade")
    log.warning("tracking store %s: upgrading its schema; a copy is in %s", path, copy)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _has_tables(path: Path) -> bool:
    """Whether the file is a store already; refuses what is no store of MLflow."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            tables = {name for (name,) in rows}
    except sqlite3.DatabaseError as error:
        raise StoreError(f"tracking store {path}: not a usable SQLite database ({error})") from error
    if tables and "experiments" not in tables:
        raise StoreError(f"tracking store {path}: a database of something else, not of MLflow")
    return bool(tables)


def _set_journal(path: Path) -> None:
    kind = file_system(path)
    mode = "DELETE" if kind in NETWORK_FILE_SYSTEMS else "WAL"
    if mode == "DELETE":
        advice = "one writer at a time; for many runs use `mlflow server`"
        log.warning("tracking store %s lies on %s: %s", path, kind, advice)
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Kind of the file system that holds `path` (`ext4`, `nfs4`, ...), empty if unknown."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    resolved = Path(path).resolve()
    holding = [
        (len(fields[1]), fields[2])
        for fields in lines
        if len(fields) > 2 and resolved.is_relative_to(fields[1].replace("\\040", " "))
    ]
    return max(holding)[1] if holding else ""
