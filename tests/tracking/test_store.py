from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cosa_dist.tracking.store import (
    StoreError,
    artifact_location,
    file_system,
    prepare_store,
    require_store,
    resolve_uri,
    sqlite_path,
    without_password,
)


def test_default_store_lies_in_the_folder_with_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None, Path("outputs")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert resolve_uri("", Path("/a/b")) == "sqlite:////a/b/mlflow.db"


def test_relative_file_counts_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///x/y.db", Path("/z")) == f"sqlite:///{tmp_path}/x/y.db"
    assert resolve_uri("sqlite:////x/y.db", Path("/z")) == "sqlite:////x/y.db"


def test_relative_files_count_from_the_named_root(tmp_path, monkeypatch):
    monkeypatch.setenv("COSA_ROOT", str(tmp_path))
    assert resolve_uri("sqlite:///x/y.db", Path("/z")) == f"sqlite:///{tmp_path}/x/y.db"
    assert resolve_uri("", Path("outputs")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert resolve_uri("", Path("/z")) == "sqlite:////z/mlflow.db"


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a%3Fb", "what?", "%C3%A9"])
def test_a_path_that_mlflow_would_read_otherwise_is_refused_before_anything_is_made(name, tmp_path):
    for uri in (None, f"sqlite:///{tmp_path}/{name}/x.db"):
        with pytest.raises(StoreError, match="path with '\\?' or an escape") as caught:
            prepare_store(uri, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a b", "a#b", "a'b", 'a"b', "100%", "\N{GREEK SMALL LETTER ALPHA}", "a&b;c@d:e"]
)
def test_any_other_path_is_its_own(name, tmp_path):
    uri = resolve_uri(None, tmp_path / name)
    assert sqlite_path(uri) == tmp_path / name / "mlflow.db"


@pytest.mark.parametrize(
    ("uri", "say"),
    [
        ("file:///tmp/mlruns", "sqlite:///"),
        ("mlruns", "sqlite:///"),
        ("ftp://host/x", "unknown kind 'ftp'"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_other_stores_are_refused_in_one_line(uri, say, tmp_path):
    with pytest.raises(StoreError) as caught:
        prepare_store(uri, tmp_path)
    assert say in str(caught.value)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_processes_can_meet_a_missing_store(cold_start):
    assert len(set(cold_start.runs)) == 3
    with closing(sqlite3.connect(sqlite_path(cold_start.uri))) as connection:
        counts = connection.execute(
            "SELECT run_uuid, COUNT(*) FROM metrics WHERE key = 'loss' GROUP BY run_uuid"
        ).fetchall()
        named = connection.execute("SELECT COUNT(*) FROM experiments WHERE name = 'first-start'").fetchall()
    assert {run: count for run, count in counts if run in cold_start.runs} == dict.fromkeys(
        cold_start.runs, 40
    )
    assert named == [(1,)]


def test_store_has_write_ahead_log_and_absolute_artifacts(cold_start):
    path = sqlite_path(cold_start.uri)
    assert path == cold_start.folder / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        places = dict(connection.execute("SELECT name, artifact_location FROM experiments"))
    root = (cold_start.folder / "artifacts").as_uri()
    assert places["first-start"] == root
    assert places["Default"].startswith(root)
    assert artifact_location("http://127.0.0.1:5000") is None


def test_preparing_again_changes_nothing(cold_start):
    before = sqlite_path(cold_start.uri).stat().st_ino
    assert prepare_store(cold_start.uri, Path("elsewhere")) == cold_start.uri
    assert sqlite_path(cold_start.uri).stat().st_ino == before


def test_a_start_that_was_killed_leaves_the_name_free(tmp_path, monkeypatch):
    from cosa_dist.tracking import store

    def die(uri, artifacts):
        sqlite_path(uri).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_create", die)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(None, tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_file_that_is_no_store_is_left_alone(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("no database, just a long enough text to be read as one" * 20)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
        connection.commit()
    for path in (text, other):
        content = path.read_bytes()
        with pytest.raises(StoreError, match=path.name):
            prepare_store(f"sqlite:///{path}", tmp_path)
        assert path.read_bytes() == content


def test_a_store_that_another_process_prepares_too_long(tmp_path):
    from filelock import FileLock

    with FileLock(str(tmp_path / "mlflow.db.lock")), pytest.raises(StoreError, match=r"\.lock"):
        prepare_store(None, tmp_path, lock_seconds=0.2)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        prepare_store(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path)


def test_requiring_a_store_creates_none(tmp_path, store):
    with pytest.raises(StoreError, match="no tracking store at"):
        require_store(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []
    require_store(store)


def test_a_server_that_does_not_answer(tmp_path):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    with pytest.raises(StoreError, match=r"does not answer.*mlflow server"):
        prepare_store(f"http://user:secret@127.0.0.1:{port}", tmp_path)


@pytest.mark.parametrize(("status", "usable"), [(200, True), (401, True), (404, True), (503, False)])
def test_answers_of_a_server(tmp_path, status, usable):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        uri = f"http://127.0.0.1:{server.server_port}"
        try:
            if usable:
                assert prepare_store(uri, tmp_path) == uri
            else:
                with pytest.raises(StoreError, match="503"):
                    prepare_store(uri, tmp_path)
        finally:
            server.shutdown()
            thread.join()


def test_messages_hide_passwords():
    assert without_password("http://me:pw@host:5/x") == "http://me:***@host:5/x"
    assert without_password("http://host") == "http://host"


def test_file_system_is_that_of_the_innermost_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nserver:/x /home nfs4 rw 0 0\ntmp /home/me/my\\040disk xfs rw 0 0\n"
    )
    assert file_system(Path("/etc/x"), mounts) == "ext4"
    assert file_system(Path("/home/me/out/mlflow.db"), mounts) == "nfs4"
    assert file_system(Path("/home/me/my disk/mlflow.db"), mounts) == "xfs"
    assert file_system(Path("/home"), tmp_path / "missing") == ""


@pytest.mark.slow
def test_a_store_of_an_older_mlflow_is_upgraded_after_a_copy(tmp_path):
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils as database
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    engine = database.create_sqlalchemy_engine_with_retry(uri)
    Base.metadata.create_all(engine)
    config = database._get_alembic_config(uri)
    newest = ScriptDirectory.from_config(config).get_current_head()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, f"{newest}-3")
    engine.dispose()
    assert prepare_store(uri, tmp_path) == uri
    versions = []
    for file in (path, tmp_path / "mlflow.db.before-upgrade"):
        with closing(sqlite3.connect(file)) as connection:
            versions += connection.execute("SELECT version_num FROM alembic_version").fetchall()
    assert versions[0] == (newest,)
    assert versions[1] != (newest,)
