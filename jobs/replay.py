"""Send MLflow what it missed of a run: `python jobs/replay.py NAME`, where the server was away for good.

Tags, tables, files and every number of the run folder that the store has not got yet are sent, with the times
of their first recording, so that nothing is there twice. The settings are there since the run began. A run
that is not finished needs no replay: `jobs/train.py --resume` sends what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.paths import place


def send(name: str, output: Path) -> int:
    """Replay a run folder and return the number of points that were missing.

    Raises:
        ConfigError: no such run, or one without a tracking run.
        StoreError: the store cannot be reached, or does not know the run.
    """
    from cosa_dist.distributed.run_folder import RunFolder
    from cosa_dist.tracking.store import prepare_store, require_store, resolve_uri
    from cosa_dist.tracking.upload import replay

    folder = RunFolder(output / "runs" / name)
    if not folder.note_file.is_file():
        raise ConfigError(folder.why_missing(folder.note_file))
    note = folder.read_note()
    if not note.run_id:
        raise ConfigError(f"run {name} was trained without tracking (tracking.enabled false)")
    uri = resolve_uri(note.tracking_uri, output)
    require_store(uri)  # an empty one made here would not know the run
    prepare_store(uri, output)
    return replay(folder.path, uri, note.run_id)


def main() -> int:
    """Return the exit code: 0 done, 2 it could not start."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", help="name of the run")
    parser.add_argument("--output", type=place, default="outputs", help="the output folder")
    arguments = parser.parse_args()
    try:
        missing = send(arguments.name, arguments.output.resolve())
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{missing} points were missing and are there now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
