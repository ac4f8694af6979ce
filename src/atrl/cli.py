"""Runs a Hydra program: what a user can mend becomes one line on stderr, and a bug keeps its traceback."""

from __future__ import annotations

import dis
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from atrl import plugins
from atrl.alarms import AlarmStop
from atrl.explain import CommandLine, explain, overrides_first, unknown_flag
from atrl.interrupts import Interrupted
from atrl.launch import log_apart, main_process, place
from atrl.quiet import quieten_console, quieten_libraries, set_environment
from atrl.whose import OwnComponent, blame, is_ours, is_standard_library, own_components

EXIT_USER = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

UNREADABLE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class JobFailed(Exception):
    """A job of a sweep met an error of the user's; its message is what to print. It survives pickling."""


def run(task: Callable[[DictConfig], Any], *, config_name: str, config_path: str | Path = "conf") -> int:
    """Composes the config that the command line asks for and runs `task` on it, or on each of a sweep's.

    Everything that Hydra offers (``--help``, ``--cfg``, ``--multirun``, shell completion …) works as always.

    Args:
        task: the program; Hydra passes it the config.
        config_name: the primary config, without its suffix.
        config_path: the folder of the configs, relative to the file of `task`.

    Returns:
        The exit code: 0, 3 for a run that an alarm stopped, 2 for an error of the user's (bad overrides, a
        ``ValueError`` raised in the code of atrl or a plug-in, or by a component of the user's own while it is built, a
        file that can't be opened), 128 and the signal's number for a run that was told to end, so 130 for Ctrl-C. Such
        errors are lines on stderr that start with ``error:``; with ``ATRL_DEBUG=1`` or ``HYDRA_FULL_ERROR=1`` in the
        environment they are raised.

    Raises:
        Exception: whatever else went wrong, which is a bug. One in a component of the user's own ends in a line that
            names it.
        SystemExit: from Hydra's command-line parser, and for ``--help`` and its like.
    """
    home = Path(inspect.getfile(task)).resolve().parent
    if problem := unknown_flag(sys.argv[1:]):
        _report(problem)
        return EXIT_USER
    sys.argv[1:] = overrides_first(sys.argv[1:])  # Hydra reads it there
    set_environment()
    _plug_in(home / config_path)
    job = _Job(task, debugging=_debugging())
    program = hydra.main(version_base="1.3", config_path=str(home / config_path), config_name=config_name)(job)
    code = _run(program, job, home=home, config_path=config_path, config_name=config_name)
    return max(code, _end_of_sweep(interrupted=code == EXIT_INTERRUPTED))


def _run(program: Callable[[], Any], job: _Job, *, home: Path, config_path: str | Path, config_name: str) -> int:
    """Calls Hydra's program and returns the exit code; what it raises is a bug."""
    try:
        with _variable("HYDRA_FULL_ERROR", "1"):  # or Hydra would print errors itself and exit
            program()
    except KeyboardInterrupt:
        return _interrupted()
    except Interrupted as stop:
        if main_process():
            _report(str(stop))
        return _code_of(stop.exit_code)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit of its own
            return _interrupted()
        raise
    except BrokenPipeError:  # whoever reads the output has seen enough, as in `… --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing it at the exit fails again
        return EXIT_USER
    except JobFailed as failure:
        if not job.reported:  # the job ran in another process, whose stderr is elsewhere
            _report(str(failure))
        return EXIT_USER
    except Exception as error:
        if job.debugging or _raised_in_job(error):
            raise
        asked = CommandLine.parse(sys.argv[1:], home=home, config_path=config_path, config_name=config_name)
        problems = explain(error, asked)
        if problems is None:
            if "No trials are completed yet" in str(error):  # Optuna's, where every job failed and was reported
                return EXIT_USER
            raise
        _report("\n".join(problems))
        return EXIT_USER
    return job.exit_code if job.reported else 0


def _end_of_sweep(*, interrupted: bool) -> int:
    """Tells what came of the sweep, if this was one; the exit code that it asks for."""
    from atrl.sweep.end import end_sweep

    try:
        failed = end_sweep(interrupted=interrupted)
    except ValueError as error:
        _report(str(error))
        return EXIT_USER
    if not failed:
        return 0
    _report("\n".join(failed))
    return EXIT_USER


class _Job:
    """The task as Hydra calls it, once or for each job of a sweep, perhaps in another process."""

    def __init__(self, task: Callable[[DictConfig], Any], *, debugging: bool) -> None:
        functools.update_wrapper(self, task)
        self.task = task
        self.debugging = debugging
        self.reported = False
        self.exit_code = EXIT_USER

    def __call__(self, config: DictConfig) -> Any:
        try:
            if OmegaConf.select(config, "verbose") is not True:
                quieten_libraries()
                quieten_console()
            log_apart(place())
            # Programs that the task starts should see the environment as the user set it.
            with _variable("HYDRA_FULL_ERROR", None):
                return self.task(config)
        except Exception as error:
            hydra_config, task_file = HydraConfig.get(), Path(inspect.getfile(self.task))
            own = own_components(config, hydra_config.runtime.choices, task_file)
            message = None if self.debugging else user_message(error, task_file, own)
            if message is None:
                if culprit := blame(unwrapped(error), own):
                    error.add_note(f"{_speaker()}: {culprit}")  # Python prints it below the traceback
                raise
            self.reported, self.exit_code = True, EXIT_USER
            if isinstance(error, AlarmStop):
                self.exit_code = _code_of(error.exit_code)
                message = message if main_process() else ""
            if hydra_config.mode == RunMode.RUN:
                _report(message)  # not raised: Hydra would print a line of its own
                return None
            job = f"job {hydra_config.job.num} ({' '.join(hydra_config.overrides.task)})"
            message = "\n".join(f"{job}: {line}" for line in message.splitlines())
            _report(message)
            raise JobFailed(message) from None  # Hydra goes on with the sweep and fails it at the end


def user_message(error: BaseException, task_file: Path, own: Sequence[OwnComponent] = ()) -> str | None:
    """What to tell the user of an error in a job, or None where it is a bug.

    A user's errors are a ``ValueError`` from a ``raise`` in this package, a plug-in's or `task_file`, or in one of the
    `own` components while it is built (one from within a library, or from Python itself, is a bug in how we call it),
    a file that our code can't open, and a config value that is missing or can't be resolved. Hydra's wrapping of errors
    in constructors is taken off first.
    """
    being_built = isinstance(error, InstantiationException)
    error = unwrapped(error)
    if isinstance(error, AlarmStop):
        return str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set: add {error.full_key}=VALUE to the command line"
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key} can't be resolved: {str(error).splitlines()[0]}"
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, ValueError):
        by_own = being_built and bool(files) and any(files[-1].resolve() in component.files for component in own)
        by_us = bool(files) and is_ours(files[-1], task_file)
        return str(error) or None if (by_us or by_own) and _by_raise(error) else None
    if isinstance(error, UNREADABLE):
        beyond_library = [file for file in files if not is_standard_library(file)]
        if beyond_library and is_ours(beyond_library[-1], task_file):
            return str(error) if error.filename is None else f"{error.strerror}: {error.filename}"
    return None


def unwrapped(error: BaseException) -> BaseException:
    """What a constructor raised, without Hydra's exceptions around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _by_raise(error: BaseException) -> bool:
    """Whether a ``raise`` statement raised `error`, not a call that has no frame, as ``int("x")``."""
    step = error.__traceback__
    while step.tb_next is not None:
        step = step.tb_next
    return step.tb_frame.f_code.co_code[step.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _raised_in_job(error: BaseException) -> bool:
    """Whether `error` is a job's: Hydra passes those on in one place, those of other processes included."""
    raiser = vars(JobReturn)["return_value"].fget.__code__
    return any(frame.f_code is raiser for frame, _ in traceback.walk_tb(error.__traceback__))


def _debugging() -> bool:
    return "1" in (os.environ.get("ATRL_DEBUG"), os.environ.get("HYDRA_FULL_ERROR"))


def _report(message: str) -> None:
    sys.stdout.flush()
    for line in message.splitlines():
        print(f"{_speaker()}: {line}", file=sys.stderr, flush=True)


def _speaker() -> str:
    here = place()
    number = here.local_rank if here.rank is None else here.rank
    return "error" if here.is_first else f"error (process {number})"


def _plug_in(own_configs: Path) -> None:
    """Find the configs of other packages; what is wrong with one is a line, and no reason to stop."""
    plugins.register()
    if main_process():
        for complaint in plugins.complaints(own_configs):
            print(f"warning: {complaint}", file=sys.stderr, flush=True)


def _code_of(stop: int) -> int:
    """The exit code `stop` of a run whose processes all end together, for this one.

    The others' is 0: where Lightning started them it kills the first, which may be at its last words, if one fails.
    """
    return stop if main_process() else 0


def _interrupted() -> int:
    if main_process():  # it reaches all processes of a run, and one says so
        _report("interrupted by Ctrl-C")
    return EXIT_INTERRUPTED


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Sets an environment variable, or removes it for None, and puts it back afterwards."""
    before = os.environ.get(name)
    _assign(name, value)
    try:
        yield
    finally:
        _assign(name, before)


def _assign(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
