"""Runs that are killed, damaged, robbed of their disk or of their folder, and what comes of them.

python benchmarks/faults.py kills|disk|removed|signals [--times 40] [--kinds run certificate sweep lottery] [--seed 0]

`kills`: SIGKILL at a random moment, and a flipped bit in a random file of the folder after every other one, until there
were as many kills as asked for; then the same command to its end. `disk`: the folder is a tmpfs (mounted here, as root)
that is full at a random size; then it is made larger, and the same command goes on. `removed`: the folder is deleted at
a random moment. `signals`: SIGINT or SIGTERM at a random moment or while a file is being written, a SIGINT soon after
every other one, and the same command again. What is left at the end is compared with an uninterrupted run's, file by
file. Everything is on scikit-learn's digits. Commands run in forks of one process that has loaded torch already; needs
a system that forks.
"""

import argparse
import csv
import hashlib
import importlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from milkshake_mbp.files import is_temporary

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "run": "mbp.py -c cfgs/digits.yaml --max_epochs 12 --ffn_hidden_dim 32 --ckpt_every_n_epochs 3",
    "certificate": "certificate.py -c cfgs/certificate_digits.yaml --max_epochs 12 --code_every_n_epochs 3 "
    "--search_rounds 4 --search_steps 300",
    "sweep": "mbp.py -c cfgs/digits.yaml --max_epochs 5 --ffn_hidden_dim 32 --ckpt_every_n_epochs 2 --seed 1 2",
    "processes": "mbp.py -c cfgs/digits.yaml --max_epochs 4 --ffn_hidden_dim 32 --ckpt_every_n_epochs 2 --seed 1 2 "
    "--parallel 2",
    "lottery": "lottery.py -c cfgs/lottery_digits.yaml --max_epochs 3 --rounds 1 --ffn_hidden_dim 16 --strong False",
}
# What differs from run to run, or is about how a run went rather than what it found.
_PASSING = re.compile(r'"(seconds|peak_memory_mib|python|state|cause|folder|out_dir|sha256)"')
_UNCOMPARED = ("manifest.json", ".lock", "config.yaml", "sweep.json", "sweep.csv", "report.html")
_SAID = re.compile(
    r"damaged|is changed|is missing|not as the run|not what was written|making it again|--rerun True makes"
)
_FULL = re.compile(r"^error: disk full")


class Ended(NamedTuple):
    """How a command ended: its status, negative for a signal, and what it said."""

    status: int
    said: str


class Command:
    """A command in a process of its own.

    Args:
        words: the script under exps/ and its arguments.
        out: its out_dir.
        log: what it says goes there.
    """

    def __init__(self, words: str, out: Path, log: Path) -> None:
        self._log = log
        script, *rest = words.split()
        sys.stdout.flush()
        self.child = os.fork()
        if self.child:
            return
        status = 70
        try:
            os.setsid()
            os.chdir(ROOT)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.argv = [script, *rest, "--out_dir", str(out), "--enable_progress_bar", "False"]
            try:
                runpy.run_path(str(ROOT / "exps" / script), run_name="__main__")
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def wait(self, seconds: float = 600) -> Ended | None:
        """How it ended; None if it is still at it."""
        until = time.monotonic() + seconds
        while True:
            child, status = os.waitpid(self.child, os.WNOHANG)
            if child:
                return Ended(os.waitstatus_to_exitcode(status), self._log.read_text(errors="replace"))
            if time.monotonic() > until:
                return None
            time.sleep(0.01)

    def kill(self) -> Ended:
        """SIGKILL, to it and all that it started."""
        os.killpg(self.child, signal.SIGKILL)
        ended = self.wait()
        assert ended is not None
        return ended


def contents(out: Path) -> dict[str, Any]:
    """What a folder holds, by the files' names, in a form that two runs of one command have in common."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or path.name in _UNCOMPARED or "checkpoints" in path.parts or path.suffix == ".log":
            continue
        if path.suffix == ".json":
            lines = path.read_text(encoding="utf-8").splitlines() if path.name != "search.json" else []
            found[name] = [line for line in lines if not _PASSING.search(line)]
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                found[name] = [
                    {key: row[key] for key in row if key != "peak_memory_mib"} for row in csv.DictReader(file)
                ]
        elif path.suffix in (".pdf", ".png", ".html", ".svg"):
            found[name] = "there"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def unfinished(out: Path) -> list[str]:
    """Locks, and files that were being written."""
    return [str(path.relative_to(out)) for path in out.rglob(".*") if is_temporary(path) or path.name == ".lock"]


def differences(out: Path, whole: dict[str, Any]) -> list[str]:
    """Names of files that differ, or are there in one only; damaged manifests, and what was not tidied up."""
    now = contents(out)
    differ = [name for name in sorted(whole | now) if whole.get(name) != now.get(name)]
    differ += unfinished(out)
    for manifest in out.rglob("manifest.json"):
        for name, digest in json.loads(manifest.read_text(encoding="utf-8")).items():
            path = manifest.parent / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                differ.append(f"{path.relative_to(out)} is not as manifest.json says")
    return differ


def flip(out: Path, r: random.Random) -> str | None:
    """Flip a bit of a file, all of which are equally likely; its name."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size)
    if not files:
        return None
    path = r.choice(files)
    data = bytearray(path.read_bytes())
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    path.write_bytes(data)
    return path.relative_to(out).as_posix()


class Fate(NamedTuple):
    """What came of one series of faults, in words, and whether it is as it should be."""

    verdict: str
    sound: bool
    faults: tuple[str, ...]
    detail: str = ""


class Kind:
    """A command to disturb, and what it leaves when nobody does.

    Args:
        name: one of `COMMANDS`.
        folder: to work in.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.words, self.folder = name, COMMANDS[name], folder
        self.log = folder / "log.txt"
        started = time.monotonic()
        ended = Command(self.words, folder / "whole", self.log).wait()
        assert ended is not None and ended.status == 0, ended
        self.seconds = time.monotonic() - started
        self.whole = contents(folder / "whole")

    def start(self, out: Path) -> Command:
        """The command, once more."""
        return Command(self.words, out, self.log)

    def judge(self, out: Path, ended: Ended | None, said: list[str], faults: list[str]) -> Fate:
        """What came of it, after a command that was left alone."""
        if ended is None:
            return Fate("never ended", False, tuple(faults))
        words = "\n".join([*said, ended.said])
        spoke = bool(_SAID.search(words))
        if ended.status != 0:
            # 2 is what the user can put right, in one line.
            return Fate(f"ended with {ended.status}", ended.status == 2 and spoke, tuple(faults), ended.said[-400:])
        differ = differences(out, self.whole)
        if not differ:
            return Fate("equal, and said" if spoke else "equal", True, tuple(faults))
        return Fate("said" if spoke else "different in silence", spoke, tuple(faults), ", ".join(differ[:6]))


def kills(kind: Kind, times: int, r: random.Random) -> Iterator[Fate]:
    """Kill the command until it has been killed often enough; a flipped bit after every other kill."""
    count = 0
    while count < times:
        out, faults, said, ended = kind.folder / "out", [], [], None
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(r.choice((1, 1, 2, 3))):
            command = kind.start(out)
            if (ended := command.wait(r.uniform(0, 1.1 * kind.seconds))) is None:
                said.append(command.kill().said)
                count += 1
                faults.append("killed")
            else:
                said.append(ended.said)
                faults.append("finished")
            if len(faults) % 2 == count % 2 and (name := flip(out, r) if out.exists() else None):
                faults.append(f"bit of {name}")
        yield kind.judge(out, kind.start(out).wait(), said, faults)


def removed(kind: Kind, times: int, r: random.Random) -> Iterator[Fate]:
    """Delete the folder while the command runs; then the same command again."""
    count = 0
    while count < times:
        out = kind.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = kind.start(out)
        ended = command.wait(r.uniform(0.2, 1.0) * kind.seconds)
        if ended is not None or not out.exists():
            ended = ended or command.wait()
            continue
        trash = kind.folder / "trash"
        shutil.rmtree(trash, ignore_errors=True)
        out.rename(trash)
        ended = command.wait()
        if contents(trash) == kind.whole:  # it had nothing left to write
            continue
        count += 1
        again = kind.start(out).wait()
        last = ended.said.strip().splitlines()[-1:] if ended else []
        honest = ended is not None and ended.status != 0 and "Traceback" not in ended.said
        fate = kind.judge(out, again, [], ["removed"])
        status = ended.status if ended else None
        yield Fate(
            f"status {status}, then {fate.verdict}", honest and fate.sound, ("removed",), f"{last} {fate.detail}"
        )


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs of that size; what is yielded changes it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield lambda size: (
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True),
            None,
        )[1]
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def disk(kind: Kind, times: int, r: random.Random) -> Iterator[Fate]:
    """A disk that is full at a random size; then a larger one, and the same command again."""
    needed = sum(path.stat().st_size for path in (kind.folder / "whole").rglob("*") if path.is_file()) // 1024
    for _ in range(times):
        size = r.randrange(8, max(9, needed))
        place = kind.folder / "disk"
        with small_disk(place, size) as resize:
            out = place / "out"
            ended = kind.start(out).wait()
            left = {path for path in out.rglob("*") if path.is_file()}
            last = ended.said.strip().splitlines()[-1:] if ended else []
            full = ended is not None and ended.status == 2 and bool(last and _FULL.match(last[0]))
            torn = [path for path in left if is_temporary(path)]
            resize(16 * needed + 65536)
            fate = kind.judge(out, kind.start(out).wait(), [], [f"disk of {size} KiB"])
            words = f"{'full' if full else f'status {ended.status if ended else None}'}, then {fate.verdict}"
            # Room enough after all: checkpoints that are deleted on the way count in the peak alone.
            sound = fate.sound and not torn and (full or (ended is not None and ended.status == 0))
            yield Fate(words, sound, fate.faults, f"{last} {fate.detail}")


def signals(kind: Kind, times: int, r: random.Random) -> Iterator[Fate]:
    """SIGINT or SIGTERM, half of them while a file is being written, and every other time a SIGINT soon after it."""
    turn = 0
    while turn < times:
        out = kind.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        command, number = kind.start(out), r.choice((signal.SIGINT, signal.SIGTERM))
        ended = command.wait(r.uniform(0.1, 1.0) * kind.seconds)
        while ended is None and turn // 2 % 2 and not any(map(is_temporary, out.rglob(".*"))):
            ended = command.wait(0)
        if ended is not None:  # it was done before
            continue
        os.kill(command.child, number)
        faults = [number.name]
        if turn % 2 and (ended := command.wait(10 ** r.uniform(-3, 0))) is None:
            os.kill(command.child, signal.SIGINT)
            faults.append("SIGINT")
        turn += 1
        if (ended := ended or command.wait(60)) is None:
            yield Fate("did not end within a minute", False, tuple(faults), command.kill().said)
            continue
        left = unfinished(out) if out.exists() else []
        tells = ended.said.strip().splitlines()[-1:]
        stopped = ended.status == 128 + number and bool(tells) and tells[0].startswith("interrupted")
        fate = kind.judge(out, kind.start(out).wait(), [], faults)
        sound = (stopped or ended.status == 0) and "Traceback" not in ended.said and not left
        sound = sound and fate.verdict.startswith("equal")
        words = "" if sound else f"{left} {ended.said}"
        yield Fate(f"status {ended.status}, then {fate.verdict}", sound, tuple(faults), f"{fate.detail} {words}")


def main() -> int:
    """Disturb, and print what came of it; 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    faults = {"kills": kills, "disk": disk, "removed": removed, "signals": signals}
    parser.add_argument("fault", choices=faults)
    parser.add_argument("--times", type=int, default=40, help="over all kinds")
    parser.add_argument("--kinds", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for heavy in ("pytorch_lightning", "torchvision", "sklearn.datasets", "matplotlib.figure", "scipy.optimize"):
        importlib.import_module(heavy)
    importlib.import_module("milkshake_mbp.experiment.train")
    importlib.import_module("milkshake_mbp.experiment.certificate.run")
    unsound = 0
    for name in args.kinds:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            kind = Kind(name, Path(folder))
            print(f"{name}: {kind.seconds:.1f} s when left alone", flush=True)
            verdicts: Counter[str] = Counter()
            happened: Counter[str] = Counter()
            times = -(-args.times // len(args.kinds))
            for fate in faults[args.fault](kind, times, random.Random(f"{args.seed} {name}")):
                verdicts[fate.verdict] += 1
                happened.update(fault.partition(" of ")[0] for fault in fate.faults)
                unsound += not fate.sound
                mark = "" if fate.sound else "NOT SOUND "
                print(f"  {mark}{', '.join(fate.faults)}: {fate.verdict}  {fate.detail}", flush=True)
            print(f"{name}: {dict(happened)} -> {dict(verdicts)}", flush=True)
    return int(unsound > 0)


if __name__ == "__main__":
    sys.exit(main())
