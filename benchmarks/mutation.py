"""Mutation score of the files where a guarantee is decided: small changes to the code that some test must notice.

python benchmarks/mutation.py [--mutants 12] [--seed 0] [--only theory/occam.py] [--out mutants.jsonl] [--again]

A mutant is one change of the kind that people make: < for ≤, a sign, a constant one off, an `and` for an `or`, min for
max, a condition the other way round, a check or a statement left out. Text of messages is left alone. Each runs in a
process of its own, which imports the changed module in place of the file's: nothing on disk is touched. First come the
tests that call the changed function, quickest first, and if none fails all that are listed here for the file. A mutant
that runs out of its time or memory counts as caught. Needs a system that forks.

A mutant in `EQUIVALENT` computes the same, or what its reason says is as good; those are counted apart.
"""

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
# One part of those that come in parts.
_FEWER = ("-k", "not (come_back or damaged_files) or 0")
CODEC = (*_FEWER, "codec/test_coder.py", "codec/test_limits.py", "codec/test_network.py", "codec/test_format.py")
READING = ("reading/test_network.py", "reading/test_graphs.py")
# The tests of each file, under tests/, and pytest's words before them.
TARGETS: dict[str, tuple[str, ...]] = {
    "theory/occam.py": ("theory/test_occam.py",),
    "theory/tail.py": ("theory/test_tail.py", "codec/test_soundness.py"),
    "theory/counting.py": ("theory/test_counting.py", "theory/test_occam.py"),
    "theory/margins.py": ("theory/test_margins.py",),
    "theory/norms.py": ("theory/test_norms.py", "theory/test_layers.py"),
    "theory/symbol.py": ("theory/test_layers.py", "theory/test_networks_peers.py"),
    "theory/pruning.py": ("theory/test_pruning.py",),
    "theory/perturbation.py": ("theory/test_perturbation.py",),
    "theory/transfer.py": ("theory/test_transfer.py",),
    "theory/layer_sketch.py": ("theory/test_layer_sketch.py",),
    "theory/bounds.py": ("theory/test_bounds.py",),
    "theory/rows/rigorous.py": ("theory/test_bounds.py", "theory/test_occam.py", "theory/test_layer_sketch.py"),
    "codec/coder.py": CODEC,
    "codec/format.py": CODEC,
    "codec/limits.py": CODEC,
    "codec/network.py": (*CODEC, "codec/test_module.py", "codec/test_page.py"),
    "codec/banks.py": ("codec/test_banks.py", "codec/test_page.py"),
    "codec/version0.py": CODEC,
    "codec/version1.py": (*CODEC, "codec/test_page.py"),
    "reading/ops.py": READING,
    "reading/record.py": READING,
    "reading/measure.py": ("reading/test_measure.py", "callbacks/test_callbacks.py"),
    "callbacks/bounds.py": ("callbacks/test_callbacks.py", "callbacks/test_moment.py"),
    "callbacks/certificate.py": ("callbacks/test_certificate.py",),
}
# By file, line and change, why no test can tell.
EQUIVALENT = {
    (
        "theory/occam.py",
        "context.prec = 24 - above.adjusted()",
        "24 -> 23",
    ): "any precision is sound: the allowance for its error follows it",
    (
        "theory/occam.py",
        "limit = float(betainccinv(errors + 1, num_samples - errors, delta))",
        "1 -> 2",
    ): "where a search begins whose end is decided exactly",
    (
        "theory/occam.py",
        "if q == 1 or math.isinf(c):",
        "q == 1 or math.isinf(c) -> q == 1 and math.isinf(c)",
    ): "the bisection ends at 1 as well",
    (
        "theory/occam.py",
        "below = k * miss < (n - k + 1) * hit",
        "k * miss < (n - k + 1) * hit -> k * miss <= (n - k + 1) * hit",
    ): "where both are equal the sum over either side will do",
    (
        "codec/format.py",
        "version = elias_gamma(coder, version_of(network) if network else 0)",
        "0 -> 1",
    ): "a reader does not look at it",
    (
        "theory/symbol.py",
        "whole = max(low for low, _ in seen) <= min(high for _, high in seen)",
        "max((low for low, _ in seen)) <= min((high for _, high in se -> "
        "max((low for low, _ in seen)) < min((high for _, high in see",
    ): "another way to the same norm, certified too",
    (
        "theory/symbol.py",
        "best = min(best, grams.bound(twists, start, best / (1 + _WORTHWHILE)))",
        "best / (1 + _WORTHWHILE) -> best * (1 + _WORTHWHILE)",
    ): "when to stop; every bound is one",
    ("theory/symbol.py", "_CHUNK = 2**22  # complex numbers at a time", "22 -> 21"): "memory",
    (
        "theory/perturbation.py",
        "indices[:, pruned], values[pruned], weight.shape, is_coalesced=True, check_invariants=False",
        "False -> True",
    ): "a check by torch of what holds",
    (
        "theory/perturbation.py",
        "return frobenius_norm(matrix) / math.sqrt(min(matrix.shape))",
        "min(matrix.shape) -> max(matrix.shape)",
    ): "a lower floor under a norm, which excludes less at first",
    (
        "theory/perturbation.py",
        "if d > _SPARSE_UP_TO:  # where needed(d) flattens, a small error in it is a large one in d",
        "d > _SPARSE_UP_TO -> d >= _SPARSE_UP_TO",
    ): "an estimate of one strength more",
}

_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_FUNCTIONS = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "floor": "ceil", "ceil": "floor"}
_FUNCTIONS |= {"any": "all", "all": "any", "maximum": "minimum", "minimum": "maximum", "expm1": "exp", "log1p": "log"}
_STARTUP_SECONDS, _MEMORY = 60, 6 << 30


class Mutant(NamedTuple):
    """One change: the place of its node in `_nodes`, which of its changes, and where and what that is."""

    node: int
    change: int
    line: int
    what: str

    @property
    def text(self) -> str:
        """What to call it."""
        return f"{self.line}: {self.what}"

    def equivalent(self, name: str, source: str) -> bool:
        """Whether it is known to make no difference."""
        return (name, source.splitlines()[self.line - 1].strip(), self.what) in EQUIVALENT


def _nodes(tree: ast.AST) -> list[ast.AST]:
    """What may be changed, in order: no annotations, messages, decorators or assertions."""
    found: list[ast.AST] = []

    def walk(node: ast.AST) -> None:
        found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(
                    child, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)
                ):
                    if isinstance(child, ast.Raise):
                        found.append(child)
                    else:
                        walk(child)

    walk(tree)
    return found


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What the node may become."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in _COMPARISONS[type(operator)]:
                ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(_OPERATORS[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node.value)
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
        if type(node.op) in _OPERATORS:
            yield ast.AugAssign(node.target, _OPERATORS[type(node.op)](), node.value)
    elif isinstance(node, ast.Call) and (renamed := _renamed(node.func)) is not None:
        yield ast.Call(renamed, node.args, node.keywords)
    elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _other_constants(value: object) -> Iterator[ast.Constant]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
        if value > 1:
            yield ast.Constant(value - 1)
    elif isinstance(value, float):
        yield ast.Constant(2 * value or 1.0)


def _renamed(function: ast.expr) -> ast.expr | None:
    if isinstance(function, ast.Name) and function.id in _FUNCTIONS:
        return ast.Name(_FUNCTIONS[function.id], ast.Load())
    if isinstance(function, ast.Attribute) and function.attr in _FUNCTIONS:
        return ast.Attribute(function.value, _FUNCTIONS[function.attr], ast.Load())
    return None


def mutants_of(source: str) -> list[Mutant]:
    """Every change of a module."""
    found = []
    for index, node in enumerate(_nodes(ast.parse(source))):
        for number, changed in enumerate(_changes(node)):
            before, after = (" ".join(ast.unparse(part).split())[:60] for part in (node, changed))
            line = getattr(node, "lineno", 0)
            found.append(Mutant(index, number, line, f"{before} -> {after}"))
    return found


def compiled(source: str, path: Path, mutant: Mutant) -> CodeType:
    """The module with that change."""
    tree = ast.parse(source)
    node = _nodes(tree)[mutant.node]
    changed = list(_changes(node))[mutant.change]

    class Replace(ast.NodeTransformer):
        def visit(self, found: ast.AST) -> ast.AST:
            return changed if found is node else self.generic_visit(found)

    Replace().visit(tree)
    return compile(ast.fix_missing_locations(tree), str(path), "exec")


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module from other code than its file's.

    Args:
        name: of the module.
        code: to run in its place.
    """

    def __init__(self, name: str, code: CodeType) -> None:
        self._name, self._code = name, code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Itself, for that module."""
        return importlib.util.spec_from_loader(name, self) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the other code."""
        exec(self._code, module.__dict__)


class Calls:
    """A pytest plugin that notes which tests call which functions of a file, and how long each takes.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seen = str(path), set[int]()
        self.tests: dict[int, list[str]] = defaultdict(list)
        self.seconds: dict[str, float] = {}

    def _trace(self, frame: FrameType, event: str, value: object) -> None:
        if frame.f_code.co_filename == self._path:
            self._seen.add(frame.f_code.co_firstlineno)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Trace one test."""
        self._seen, started = set(), time.process_time()
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.process_time() - started
            for line in self._seen:
                self.tests[line].append(item.nodeid)


def forked(work: Callable[[], int], cpu_seconds: float) -> int | None:
    """The status that `work` ends a child process with; None if it was ended, as at the end of its time."""
    sys.stdout.flush()
    if not (child := os.fork()):
        status = 70
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1, int(cpu_seconds) + 2))
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            signal.alarm(int(6 * cpu_seconds) + 60)
            status = work()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else None


def run_tests(chosen: list[str], *plugins: object) -> int:
    """Pytest's status, of tests in this order."""
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "--rootdir", str(ROOT)]
    with contextlib.redirect_stdout(io.StringIO()):
        return int(pytest.main([*words, *chosen], plugins=list(plugins)))


class Target:
    """A file to mutate, and what its tests do.

    Args:
        name: under milkshake_mbp/.
        tests: under tests/.
        folder: for what the first run writes.

    Raises:
        RuntimeError: its tests fail as it is.
    """

    def __init__(self, name: str, tests: tuple[str, ...], folder: Path) -> None:
        self.name, self.path = name, ROOT / "milkshake_mbp" / name
        self.module = f"milkshake_mbp.{name.removesuffix('.py').replace('/', '.')}"
        self.source = self.path.read_text(encoding="utf-8")
        self._files = [str(ROOT / "tests" / test) if test.endswith(".py") else test for test in tests]
        notes = folder / f"{name.replace('/', '.')}.json"

        def first_run() -> int:
            calls = Calls(self.path)
            # Where every test calls nearly everything, tracing takes longer than it saves.
            status = 0 if "-k" in tests else run_tests(self._files, calls)
            notes.write_text(json.dumps({"tests": calls.tests, "seconds": calls.seconds}), encoding="utf-8")
            return status

        if (status := forked(first_run, 1200)) != 0:
            raise RuntimeError(f"the tests of {name} end with {status} before anything is changed")
        found = json.loads(notes.read_text(encoding="utf-8"))
        self._tests, self._seconds = {int(line): tests for line, tests in found["tests"].items()}, found["seconds"]
        self.cpu_seconds = sum(self._seconds.values()) or 60.0

    def _callers(self, line: int) -> list[str]:
        """Tests that call the innermost function around a line, quickest first; for the module's own lines all."""
        first = 0
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno <= line <= (
                node.end_lineno or 0
            ):
                first = max(first, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]))
        chosen = self._tests.get(first, []) if first else list(self._seconds)
        return sorted(chosen, key=self._seconds.__getitem__)

    def fate(self, mutant: Mutant) -> str:
        """`failed`, `ended` (out of time or memory), or `survived`."""
        code = compiled(self.source, self.path, mutant)

        def work(chosen: list[str]) -> Callable[[], int]:
            def tests() -> int:
                sys.meta_path.insert(0, Replaced(self.module, code))
                return run_tests(chosen)

            return tests

        for chosen in (self._callers(mutant.line), self._files):
            # All those that call it, in the order given, are as good as whole files to pytest.
            if chosen and (status := forked(work(chosen), _STARTUP_SECONDS + 5 * self.cpu_seconds)) != 0:
                return "ended" if status is None else "failed"
        return "survived"


def main() -> int:
    """Run the mutants and print the score by file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=12, help="of each file, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(TARGETS), help="files, as under milkshake_mbp/")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="a line for each mutant; goes on there")
    parser.add_argument(
        "--again", action="store_true", help="run those that survived once more, after a change of tests"
    )
    args = parser.parse_args()
    # What every test imports, once.
    for heavy in ("hypothesis", "pytorch_lightning", "scipy.optimize", "scipy.stats", "torchvision", "yaml"):
        importlib.import_module(heavy)
    os.environ["OMP_NUM_THREADS"] = "1"
    args.out = args.out.resolve()
    os.chdir(ROOT)
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(fate["file"], fate["mutant"]): fate["fate"] for fate in known}
    if args.again:
        done = {mutant: fate for mutant, fate in done.items() if fate != "survived"}
    totals: list[int] = []
    for name in args.only:
        source = (ROOT / "milkshake_mbp" / name).read_text(encoding="utf-8")
        drawn = mutants_of(source)
        drawn = random.Random(f"{args.seed} {name}").sample(drawn, min(args.mutants, len(drawn)))
        # The same change twice in a line is one mutant.
        drawn = list({mutant.text: mutant for mutant in drawn}.values())
        left = [mutant for mutant in drawn if (name, mutant.text) not in done]
        target = Target(name, TARGETS[name], args.out.parent) if left else None
        for mutant in left:
            assert target is not None
            fate = done[name, mutant.text] = target.fate(mutant)
            with args.out.open("a", encoding="utf-8") as file:
                print(json.dumps({"file": name, "mutant": mutant.text, "fate": fate}), file=file)
        counted = [mutant for mutant in drawn if not mutant.equivalent(name, source)]
        survived = [mutant.text for mutant in counted if done[name, mutant.text] == "survived"]
        totals += len(counted) - len(survived), len(counted)
        print(
            f"{name:28} {len(counted) - len(survived):3} of {len(counted):3} caught, "
            f"{len(drawn) - len(counted)} equivalent",
            *survived,
            sep="\n    ",
            flush=True,
        )
    print(f"{sum(totals[::2])} of {sum(totals[1::2])} mutants caught")
    return 0


if __name__ == "__main__":
    sys.exit(main())
