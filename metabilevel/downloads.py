"""Downloads, each checked against the checksum that was published for it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


def download(url: str, path: Path, checksum: str) -> None:
    """Puts what `url` gives into the new file `path`, which has that name only when it is whole and right.

    **Arguments:**

    - `checksum`: `"<algorithm>:<hexadecimal digits>"`.

    **Raises:** `InputError` that names the address, or the file where that cannot be written.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    try:
        with _bar(path.name) as bar:
            downloader: Any = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)
            pooch.retrieve(url, checksum, path.name, path.parent, downloader=downloader)
        path.chmod(0o644)  # the temporary file of pooch is the owner's alone
    except requests.RequestException as error:
        reply = error.response
        reason = type(error).__name__ if reply is None else f"HTTP status {reply.status_code}"
        raise InputError(f"{url} cannot be downloaded ({reason}).") from error
    except ValueError as error:
        raise InputError(f"{url} gives a file whose checksum is not {checksum}; it was not kept.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error


@contextmanager
def _bar(name: str) -> Iterator[Any]:
    """A progress bar of the kind that pooch knows, on standard error, silent where that is no terminal."""
    from rich import progress
    from rich.console import Console

    columns = progress.TextColumn(name), progress.BarColumn(), progress.DownloadColumn(), progress.TimeRemainingColumn()
    hidden = not sys.stderr.isatty()
    with progress.Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as shown:
        task = shown.add_task(name, total=None)

        class Bar:
            total = property(None, lambda _, size: shown.update(task, total=size or None))

            def update(self, size: int) -> None:
                shown.advance(task, size)

            def reset(self) -> None:
                shown.reset(task)

            def close(self) -> None:
                shown.refresh()

        yield Bar()
