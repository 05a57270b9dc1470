"""The command `mbp`, whose subcommands are the experiments, and the configurations that come with them.

In a checkout, the scripts of `exps` and the files of `cfgs` are next to the package; in a wheel they are inside it. So
`mbp train -c digits` in any folder does the same as `python exps/mbp.py -c cfgs/digits.yaml` in the checkout.
"""

import ast
import difflib
import os
import re
import runpy
import sys
from pathlib import Path

__all__ = [
    "SCRIPTS",
    "advice",
    "as_called",
    "called",
    "configuration",
    "configurations",
    "folder",
    "installed",
    "main",
    "program",
]

# The scripts, by subcommand.
SCRIPTS = {"train": "mbp"} | {
    name: name
    for name in (
        "ladder",
        "certificate",
        "lottery",
        "rank",
        "phase",
        "report",
        "reproduce",
        "adversarial",
        "distillation",
    )
}
_PACKAGE = Path(__file__).resolve().parent
_USAGE = "usage: mbp COMMAND [-c NAME|FILE.yaml] [--key value ...]"


def folder(name: str) -> Path:
    """Where scripts ("exps"), configurations ("cfgs") or errata ("docs") lie: inside the package, or beside it."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def installed() -> bool:
    """Whether the package was installed from a wheel, so that `mbp` is how its experiments are called."""
    return folder("exps").parent == _PACKAGE


def configurations() -> list[str]:
    """The names of the configurations that come with the package; a sweep of wandb's is not for its scripts."""
    return sorted(path.stem for path in folder("cfgs").glob("*.yaml") if not path.stem.startswith("wandb_"))


def configuration(given: str) -> Path:
    """The file that ``-c`` names: one that there is, or else the one of this name that comes with the package."""
    path = Path(given).expanduser()
    if path.is_file() or path.name != given or path.stem not in configurations():
        return path
    return folder("cfgs") / f"{path.stem}.yaml"


def advice(given: str) -> str:
    """Advice for the name of a configuration that does not exist; empty if no name is similar."""
    nearest = difflib.get_close_matches(Path(given).stem, configurations(), n=1)
    return f"; did you mean -c {nearest[0]}, which comes with the package?" if nearest else ""


def called(script: str, *config: str) -> str:
    """How a user calls a script: as a subcommand of `mbp` where the package is installed, else as a file.

    Args:
        script: its name without suffix, such as "certificate".
        config: names of configurations that come with the package.
    """
    if installed():
        subcommand = next((name for name, stem in SCRIPTS.items() if stem == script), script)
        return " ".join([f"mbp {subcommand}", *(f"-c {name}" for name in config)])
    return " ".join([f"python exps/{script}.py", *(f"-c cfgs/{name}.yaml" for name in config)])


def as_called(text: str) -> str:
    """A script's docstring with its calls as `called` has them."""
    return re.sub(r"python exps/(\w+)\.py", lambda call: called(call[1]), text)


def program() -> str:
    """The program's name in a script's own help."""
    script = Path(sys.argv[0])
    if installed() and script.resolve().parent == folder("exps"):
        return called(script.stem)
    return script.name


def main() -> None:
    """Run the script that the first word names on the words that follow, as `python exps/SCRIPT.py` would.

    Raises:
        SystemExit: always, with the script's status; 2 for a word that names none.
    """
    # Threads that spin while they wait stall one another where cores are few or shared. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
        raise SystemExit(0)
    if command not in SCRIPTS:
        nearest = difflib.get_close_matches(command, SCRIPTS, n=1)
        which = f'did you mean "{nearest[0]}"?' if nearest else f"expected one of {', '.join(SCRIPTS)}"
        print(f'error: unknown command "{command}": {which}', file=sys.stderr)
        raise SystemExit(2)
    script = folder("exps") / f"{SCRIPTS[command]}.py"
    # As the main module under its own path, so that processes that Lightning starts for other devices run it too.
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
    raise SystemExit(0)


def _help() -> str:
    width = max(map(len, SCRIPTS)) + 2
    lines = [f"  {name:{width}}{_summary(SCRIPTS[name])}" for name in SCRIPTS]
    named = f"Configurations that -c finds by name: {', '.join(configurations())}"
    return "\n".join([_USAGE, "", *lines, "", named, "", "mbp COMMAND --help lists the keys of a command."])


def _summary(script: str) -> str:
    """The first line of a script's docstring."""
    source = (folder("exps") / f"{script}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
