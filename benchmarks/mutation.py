"""Mutation score of the files where a guarantee is decided: small changes to the code that some test must notice.

python benchmarks/mutation.py [--mutants 12] [--seed 0] [--only theory/occam.py] [--out mutants.jsonl] [--again]

A mutant is one change of the kind that people make: < for ≤, a sign, a constant one off, an `and` for an `or`, min for
max, a condition the other way round, a check or a statement left out. Text of messages is left alone. Each is judged by
the tests that are listed here for the file, in a process of its own, in which the changed function has other code, or
where no function is changed the whole module: nothing on disk is touched. They are the tests that call the function,
quickest first, or all for what is not within one. A mutant that runs out of its time or memory counts as caught. Needs
a system that forks.

A mutant in `EQUIVALENT` computes the same, or what its reason says is as good; those are counted apart.
"""

import argparse
import ast
import contextlib
import gc
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
from types import CodeType, FrameType, FunctionType, ModuleType
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
    "theory/rows/rigorous.py": ("theory/test_rigorous.py", "theory/test_bounds.py", "theory/test_occam.py"),
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
        "limit = float(betainccinv(errors + 1, num_samples - errors, delta))",
        "num_samples - errors -> num_samples + errors",
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
    (
        "theory/symbol.py",
        "size = max(1, _CHUNK // self.even[0].numel())",
        "_CHUNK // self.even[0].numel() -> _CHUNK * self.even[0].numel()",
    ): "memory",
    (
        "theory/layer_sketch.py",
        "largest = math.isqrt(rows * columns - 1) if all(sides) else (rows if sides[0] else columns) - 1",
        "1 -> 2",
    ): "which sizes of a sketch are tried; each is certified",
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
    (
        "theory/symbol.py",
        "_GOLDEN = (math.sqrt(5) - 1) / 2",
        "1 -> 2",
    ): "in which order frequencies are looked at",
    (
        "theory/symbol.py",
        "best = min(best, grams.bound(twists, start, best / (1 + _WORTHWHILE)))",
        "1 + _WORTHWHILE -> 1 - _WORTHWHILE",
    ): "when to stop; every bound is one",
    (
        "theory/symbol.py",
        "return scale * (math.sqrt(best + 3 * products * UNIT * mass**2) + 4 * UNIT * mass) * (1 + 8 * UNIT)",
        "1 + 8 * UNIT -> 1 - 8 * UNIT",
    ): "the allowance under the root is larger than both: at least 64 products",
    (
        "theory/norms.py",
        "return low, math.sqrt(square + 1.1 * longer * UNIT * frobenius**2) + 2 * UNIT * frobenius",
        "math.sqrt(square + 1.1 * longer * UNIT * frobenius ** 2) + 2 -> "
        "math.sqrt(square + 1.1 * longer * UNIT * frobenius ** 2) - 2",
    ): "the term under the root is larger from six rows on; with fewer, `square` is 1e-10 above what it bounds",
    (
        "theory/norms.py",
        "return float(scale * _lanczos(normal, size, matrix, 2 * tolerance).sqrt())",
        "2 -> 1",
    ): "a smaller error than was asked for",
    (
        "codec/version0.py",
        "least + self._numbers.number(getattr(given, name) - least if given else 0, MAX_NUMBER)",
        "0 -> 1",
    ): "a reader does not look at it",
    (
        "codec/version0.py",
        'flags = [self._numbers.flag(getattr(given, name, False)) for name in ("grey", "pixels")]',
        "False -> True",
    ): "a reader does not look at it",
    (
        "codec/version0.py",
        "negative = coder.bit(int(value < 0), self._negative[signs])",
        "0 -> 1",
    ): "a whole number that is not 0",
    (
        "codec/version1.py",
        'pool = given if isinstance(given, Pool) else Pool("sum", 1, 1)',
        "1 -> 2",
    ): "a reader does not look at it",
    (
        "reading/measure.py",
        "if test is not None and search is not None and search.d > 0:",
        "search.d > 0 -> search.d >= 0",
    ): "at 0 nothing is pruned: one pass more for the same error",
    (
        "callbacks/certificate.py",
        "chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:_CHOOSING]",
        "0 -> 1",
    ): "which samples the roundings are compared by",
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


def functions_of(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """Every function in a module's code by its name and line, those within others too."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield (part.co_name, part.co_firstlineno), part
            yield from functions_of(part)


def exchanges(path: Path, before: CodeType, after: CodeType) -> list[tuple[FunctionType, CodeType]]:
    """The functions in memory that a change of their module's code changes, and what they become.

    Empty where more changes than functions: a constant of the module, a default, or one of two lambdas in a line.
    """
    old, new = list(functions_of(before)), dict(functions_of(after))
    names = [name for name, _ in old]
    changed = {name for name, code in old if code != new[name]}
    if not changed or any(names.count(name) > 1 for name in changed):
        return []
    found = []
    for live in gc.get_objects():
        if isinstance(live, FunctionType) and live.__code__.co_filename == str(path):
            name = live.__code__.co_name, live.__code__.co_firstlineno
            if name in changed and new[name].co_freevars == live.__code__.co_freevars:
                found.append((live, new[name]))
    return found


class Calls:
    """A pytest plugin that notes which tests call which functions of a file, and how long each takes; then its mutants.

    Args:
        path: of the file.
        notes: where to write it down.
        traced: whether to look which; where every test calls nearly everything, that takes longer than it saves.
        judge: called with what can be run again when all have passed.
    """

    def __init__(self, path: Path, notes: Path, traced: bool, judge: Callable[["Calls", pytest.Session], None]) -> None:
        self._path, self._notes, self._judge, self._seen = str(path), notes, judge, set[int]()
        self.tests: dict[int, list[str]] = defaultdict(list)
        self.seconds: dict[str, float] = {}
        self._tracing = traced

    def _trace(self, frame: FrameType, event: str, value: object) -> None:
        if frame.f_code.co_filename == self._path:
            self._seen.add(frame.f_code.co_firstlineno)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Trace one test."""
        self._seen, started = set(), time.process_time()
        if self._tracing:
            sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.process_time() - started
            for line in self._seen:
                self.tests[line].append(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        """Write down what was seen, and judge the mutants where everything is loaded already."""
        result = yield
        if not session.testsfailed:
            self._tracing = False
            notes = {"tests": self.tests, "seconds": self.seconds}
            self._notes.write_text(json.dumps(notes), encoding="utf-8")
            self._judge(self, session)
        return result


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
    words = [
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:randomly",
        "--rootdir",
        str(ROOT),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        return int(pytest.main([*words, *chosen], plugins=list(plugins)))


class Target:
    """A file to mutate, and what its tests do.

    Args:
        name: under milkshake_mbp/.
        tests: under tests/.
        folder: for what the first run writes.
    """

    def __init__(self, name: str, tests: tuple[str, ...], folder: Path) -> None:
        self.name, self.path = name, ROOT / "milkshake_mbp" / name
        self.module = f"milkshake_mbp.{name.removesuffix('.py').replace('/', '.')}"
        self.source = self.path.read_text(encoding="utf-8")
        self._files = [str(ROOT / "tests" / test) if test.endswith(".py") else test for test in tests]
        self._notes = folder / f"{name.replace('/', '.')}.json"

    def fates(self, mutants: list[Mutant], note: Callable[[Mutant, str], None]) -> None:
        """Judge mutants: `failed`, `ended` (out of time or memory), or `survived`.

        Args:
            mutants: of the file.
            note: is told each, in a process of its own.

        Raises:
            RuntimeError: the tests fail as the file is.
        """
        before = compile(self.source, str(self.path), "exec")
        codes = {mutant: compiled(self.source, self.path, mutant) for mutant in mutants}
        elsewhere = self._notes.with_suffix(".left")

        def judge(calls: Calls, session: pytest.Session) -> None:
            items = {item.nodeid: item for item in session.items}
            left = []
            for mutant in mutants:
                if not exchanges(self.path, before, codes[mutant]):
                    left.append(mutants.index(mutant))
                    continue
                chosen = [items[name] for name in self._order(mutant.line, calls.tests, calls.seconds)]

                def work(mutant: Mutant = mutant, chosen: list[pytest.Item] = chosen) -> int:
                    for function, code in exchanges(self.path, before, codes[mutant]):
                        function.__code__ = code
                    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                        if session.testsfailed:
                            return 1
                    return 0

                note(mutant, _fate(forked(work, _STARTUP_SECONDS + 5 * sum(calls.seconds.values()))))
            elsewhere.write_text(json.dumps(left), encoding="utf-8")

        elsewhere.unlink(missing_ok=True)
        status = forked(
            lambda: run_tests(self._files, Calls(self.path, self._notes, "-k" not in self._files, judge)), 20_000
        )
        if status != 0 or not elsewhere.exists():
            raise RuntimeError(f"the tests of {self.name} end with {status} before anything is changed")
        notes = json.loads(self._notes.read_text(encoding="utf-8"))
        tests, seconds = {int(line): names for line, names in notes["tests"].items()}, notes["seconds"]
        for index in json.loads(elsewhere.read_text(encoding="utf-8")):
            mutant = mutants[index]

            def imported(mutant: Mutant = mutant) -> int:
                sys.meta_path.insert(0, Replaced(self.module, codes[mutant]))
                return run_tests(self._order(mutant.line, tests, seconds))

            note(mutant, _fate(forked(imported, _STARTUP_SECONDS + 5 * sum(seconds.values()))))

    def _order(self, line: int, tests: dict[int, list[str]], seconds: dict[str, float]) -> list[str]:
        """Tests that call the innermost function around a line, quickest first; for the module's own lines all."""
        first = 0
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno <= line <= (
                node.end_lineno or 0
            ):
                first = max(first, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]))
        return sorted(tests.get(first) or seconds, key=seconds.__getitem__)


def _fate(status: int | None) -> str:
    return {None: "ended", 0: "survived"}.get(status, "failed")


def fates(path: Path) -> dict[tuple[str, str], str]:
    """What is on record, by file and mutant; the last word counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(fate["file"], fate["mutant"]): fate["fate"] for fate in map(json.loads, lines)}


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
    done = fates(args.out)
    if args.again:
        done = {mutant: fate for mutant, fate in done.items() if fate != "survived"}
    totals: list[int] = []
    for name in args.only:
        source = (ROOT / "milkshake_mbp" / name).read_text(encoding="utf-8")
        drawn = mutants_of(source)
        drawn = random.Random(f"{args.seed} {name}").sample(drawn, min(args.mutants, len(drawn)))
        # The same change twice in a line is one mutant.
        drawn = list({mutant.text: mutant for mutant in drawn}.values())
        left = [mutant for mutant in drawn if (name, mutant.text) not in done and not mutant.equivalent(name, source)]

        def note(mutant: Mutant, fate: str, name: str = name) -> None:
            with args.out.open("a", encoding="utf-8") as file:
                print(json.dumps({"file": name, "mutant": mutant.text, "fate": fate}), file=file)

        if left:
            Target(name, TARGETS[name], args.out.parent).fates(left, note)
            done |= {mutant: fate for mutant, fate in fates(args.out).items() if mutant[0] == name}
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
