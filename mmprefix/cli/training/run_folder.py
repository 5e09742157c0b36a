"""Folder of a run: runs/NAME, then runs/NAME-2 ...; its checkpoints by name, and what may not be written over.

A folder that a recipe names itself (trainer.default_root_dir) is taken as it is, and refused where it holds a run.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mmprefix.errors import InputError

RUNS, CHECKPOINTS, MODEL, LOGS = Path("runs"), "checkpoints", "model", "logs"
MESSAGES = "log.txt"  # of libraries
_OF_PARENT = "MMPREFIX_RUN_FOLDER"  # processes that a run starts work in its folder
_JOB = "slurm_job"


@dataclass(frozen=True)
class RunFolder:
    """Folder of a run; ``new``: made for it, and gone again if the run ends before its first step."""

    path: Path
    new: bool = False
    resumed_job: bool = False  # a scheduler has started the same job again

    @property
    def last(self) -> Path:
        """Checkpoint to go on from."""
        return self.path / CHECKPOINTS / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best validation."""
        return self.path / CHECKPOINTS / "best.ckpt"

    @contextmanager
    def released_on_error(self, unused: Callable[[], bool] = lambda: True) -> Generator[None, None, None]:
        """Release the folder where the block fails and ``unused`` holds."""
        try:
            yield
        except BaseException:
            if unused():
                self.release()
            raise

    def release(self) -> None:
        """Remove the logs of a run without a step, and the folder if nothing else is in it."""
        if self.new and not list((self.path / CHECKPOINTS).glob("*.ckpt")):
            for name in (LOGS, CHECKPOINTS):
                shutil.rmtree(self.path / name, ignore_errors=True)
            for name in (_JOB, MESSAGES):
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def clear(self) -> None:
        """Remove the checkpoints of the run that was here (``--overwrite``)."""
        for file in (self.path / CHECKPOINTS).glob("*.ckpt"):
            file.unlink()


def folder_to_fit(name: str, root: str | None, ckpt_path: str | None, *, overwrite: bool = False) -> RunFolder:
    """Folder for a training: ``root`` if it is named, else that of the run to resume, else a new one below runs/.

    Raises InputError for a folder that holds a run, unless that is resumed or overwritten, and for one that cannot be
    written.
    """
    if _OF_PARENT in os.environ and "LOCAL_RANK" in os.environ:
        return RunFolder(Path(os.environ[_OF_PARENT]))
    newest = Path(root) if root is not None else newest_run(name)
    if newest is not None and _is_same_job(newest):
        return RunFolder(newest, resumed_job=True)
    if root is None and ckpt_path is not None:
        resumed = newest if ckpt_path in ("last", "best") else _run_of(ckpt_path, name)
        if resumed is not None:
            return RunFolder(resumed)
        if ckpt_path in ("last", "best"):
            raise InputError(f"--ckpt_path {ckpt_path}: there is no run {RUNS / name} yet; leave it out")
    path = Path(root) if root is not None else RUNS / name
    require_writable_place("trainer.default_root_dir", path)
    if root is None and not overwrite and not _started_by_others():
        path = _claim(path)
        _note_job(path)
        return RunFolder(path, new=True)
    if not overwrite and ckpt_path is None and _holds_run(path):
        raise InputError(
            f"{path}: holds a run; --ckpt_path last goes on with it, --overwrite starts anew in its place, "
            "--trainer.default_root_dir gives another folder"
        )
    return RunFolder(path)


def folder_to_use(name: str, root: str | None, ckpt_path: str | None) -> RunFolder:
    """Folder for everything but a training: ``root``, the run of the checkpoint, or the newest run of that name."""
    if root is not None:
        return RunFolder(Path(root))
    return RunFolder(_run_of(ckpt_path or "", name) or newest_run(name) or RUNS / name)


def newest_run(name: str) -> Path | None:
    """Newest of runs/NAME, runs/NAME-2 ... by its last checkpoint or log; None where there is none."""
    folders = [entry for entry in RUNS.glob(f"{name}*") if _is_run_of(entry, name) and _is_taken(entry)]
    return max(folders, key=_written_at, default=None)


def resolve_checkpoint(ckpt_path: str, folders: list[Path]) -> Path:
    """File of ``ckpt_path``, which may be last or best: the newest such checkpoint in ``folders``.

    Raises InputError where there is none.
    """
    require_checkpoint(ckpt_path)
    if ckpt_path not in ("last", "best"):
        return Path(ckpt_path)
    patterns = ("last*.ckpt", "hpc_ckpt_*.ckpt") if ckpt_path == "last" else ("best.ckpt",)
    files = [file for folder in folders for pattern in patterns for file in folder.glob(pattern)]
    if not files:
        raise InputError(f"--ckpt_path {ckpt_path}: there is no such checkpoint in {folders[0]}; leave it out")
    return max(files, key=lambda file: file.stat().st_mtime_ns)


def require_checkpoint(ckpt_path: str) -> None:
    """Raise InputError for a name that is neither last nor best nor a file."""
    if ckpt_path not in ("last", "best") and not Path(ckpt_path).is_file():
        raise InputError(f"{ckpt_path}: no such checkpoint")


def require_writable_place(option: str, path: Path) -> None:
    """Raise InputError where ``path`` could not be made or written to; nothing is left there."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{option} {path}: {place} is a file; give a folder")
    try:
        tempfile.TemporaryDirectory(dir=place, prefix=".mmprefix").cleanup()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror}); give another folder") from error


def file_to_write(out: str | None, folder: RunFolder, *, overwrite: bool = False) -> Path:
    """File ``out`` for predictions, or the first of predictions.jsonl, predictions-2.jsonl ... in ``folder``.

    Raises InputError for a file that is there, unless it is overwritten, and for one that cannot be written.
    """
    if out is None:
        file = folder.path / "predictions.jsonl"
        names = (file if number == 1 else file.with_stem(f"{file.stem}-{number}") for number in count(1))
        return file if overwrite else next(name for name in names if not name.exists())
    require_writable_place("--out", Path(out).parent)
    if Path(out).exists() and not overwrite:
        raise InputError(f"--out {out}: exists; --overwrite replaces it")
    return Path(out)


def share_with_processes(folder: RunFolder | None) -> None:
    """Let the processes that this run starts work in ``folder``; None: no more."""
    os.environ.pop(_OF_PARENT, None)
    if folder is not None:
        os.environ[_OF_PARENT] = str(folder.path)


def _claim(path: Path) -> Path:
    """First of PATH, PATH-2 ... that no run has; its logs folder is made in one step, so that two never share it."""
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if _is_taken(folder):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / LOGS).mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _is_taken(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LOGS, CHECKPOINTS, MODEL))


def _holds_run(folder: Path) -> bool:
    return any((folder / CHECKPOINTS).glob("*.ckpt")) or (folder / MODEL).exists()


def _is_run_of(folder: Path, name: str) -> bool:
    return folder.is_dir() and re.fullmatch(rf"{re.escape(name)}(-[1-9]\d*)?", folder.name) is not None


def _run_of(ckpt_path: str, name: str) -> Path | None:
    """Run of ``name`` that holds the file ``ckpt_path``."""
    folder = Path(ckpt_path).parent.parent
    inside = Path(ckpt_path).parent.name == CHECKPOINTS and folder.parent.resolve() == RUNS.resolve()
    return folder if inside and _is_run_of(folder, name) else None


def _written_at(folder: Path) -> int:
    files = [*folder.glob(f"{CHECKPOINTS}/*.ckpt"), *folder.glob(f"{LOGS}/*"), folder]
    return max(file.stat().st_mtime_ns for file in files)


def _started_by_others() -> bool:
    """Return True in a process of torchrun, MPI or srun: none of them can choose a folder alone."""
    several = any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE"))
    return several or "LOCAL_RANK" in os.environ


def _note_job(folder: Path) -> None:
    if job := os.environ.get("SLURM_JOB_ID"):
        (folder / _JOB).write_text(job, encoding="utf-8")


def _is_same_job(folder: Path) -> bool:
    """Return True where SLURM has started the job of ``folder`` again."""
    job, again = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return bool(job and again and (folder / _JOB).is_file() and (folder / _JOB).read_text(encoding="utf-8") == job)
