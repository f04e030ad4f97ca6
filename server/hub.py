"""Models from the Hugging Face hub: only what octavo reads, with progress and plain sentences.

The hub's library honours HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT by itself.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import tqdm  # type: ignore[import-untyped]
from huggingface_hub import constants, errors

from octavo.engine.errors import BrokenCheckpoint, ModelNotFound

_DISK = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOENT, errno.ENOTDIR, errno.EIO),
    )
)
Progress = Callable[[str, int, int], None]


def download(
    model: str, revision: str | None, *, wanted: re.Pattern[str], progress: Progress
) -> Path:
    """The folder with the files of a hub repository that match `wanted`; cached ones are kept.

    Raises:
        ModelNotFound: there is no such repository or revision, it may not be read, or it cannot
            be reached and is not in the cache.
        BrokenCheckpoint: the repository has no safetensors files.
    """
    place = _place(model, revision)
    try:
        found = huggingface_hub.HfApi().model_info(model, revision=revision, files_metadata=True)
    except errors.GatedRepoError:
        raise ModelNotFound(
            f"{place} is gated: ask for access on its page, then set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"There is no folder {model} here and no repository {model} on the hub (or it is "
            f"private: set HF_TOKEN)."
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(f"{model} has no revision {revision!r}.") from None
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{model!r} is no hub id: {error}") from None
    except Exception as error:  # no connection: each version of the library raises another type
        if _is_of_the_disk(error):
            raise _unwritable(place, error) from None
        return _from_cache(model, revision, why=_first_line(error))
    files = {
        f.rfilename: f.size or 0 for f in found.siblings or () if wanted.fullmatch(f.rfilename)
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise BrokenCheckpoint(f"{place} has no safetensors files, the only weights octavo reads.")
    return _fetch(model, revision, files, progress)


def _fetch(model: str, revision: str | None, files: dict[str, int], progress: Progress) -> Path:
    place = _place(model, revision)
    stage, total, done = f"downloading {place}", sum(files.values()), 0
    progress(stage, done, total)
    folder = Path()
    for name, size in sorted(files.items(), key=lambda item: item[1]):  # the small ones first
        before = done

        def report(here: int, before: int = before) -> None:
            progress(stage, before + here, total)

        bar = _reporting_bar(report)
        try:
            # By branch, not by commit: that is how the cache can be asked again without the hub.
            path = huggingface_hub.hf_hub_download(model, name, revision=revision, tqdm_class=bar)
        except errors.GatedRepoError:
            raise ModelNotFound(
                f"{place} is gated: ask for access on its page, then set HF_TOKEN."
            ) from None
        except Exception as error:  # each version of the library raises another type
            if _is_of_the_disk(error):
                raise _unwritable(place, error) from None
            raise ModelNotFound(
                f"{place}: {name} could not be downloaded ({_first_line(error)}); "
                f"start again to go on from here."
            ) from None
        done += size
        progress(stage, done, total)
        folder = Path(path).parents[name.count("/")]
    return folder


def _from_cache(model: str, revision: str | None, *, why: str) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True)
        )
    except OSError:
        raise ModelNotFound(
            f"There is no folder {model} here, the hub cannot be reached ({why}), and "
            f"{_place(model, revision)} is not in the local cache, {constants.HF_HUB_CACHE}."
        ) from None


def _is_of_the_disk(error: Exception) -> bool:
    """Whether it is a file of ours that could not be written, and no connection."""
    return isinstance(error, OSError) and error.errno in _DISK


def _unwritable(place: str, error: Exception) -> ModelNotFound:
    reason = os.strerror(getattr(error, "errno", None) or 0)
    return ModelNotFound(
        f"{place} cannot be kept in the cache, {constants.HF_HUB_CACHE}: {reason}. Make room there "
        f"and start again to go on from here, or name another place with HF_HOME."
    )


def _place(model: str, revision: str | None) -> str:
    return f"{model}@{revision}" if revision else model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _reporting_bar(report: Callable[[int], None]) -> type[Any]:
    """A progress bar that draws nothing and says how many bytes of its file are here."""

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self._here = initial

        def update(self, n: float | None = 1) -> None:
            self._here += int(n or 0)
            report(self._here)

    return Bar
