"""Faults put into the package on purpose: how many do the tests notice?

    pip install cosmic-ray coverage
    python tools/studies/mutation_sample.py --seed 1 --number 200

The mutants are cosmic-ray's, of a copy of the checkout: `+` becomes `-`, 3 becomes 4,
`<` becomes `<=`, a `not` comes or goes, a loop is empty. A place counts once, whatever
number of mutants it has; types in annotations do not count. First a recording: which
tests pass through which line, and how long they take (--work keeps it for the next
seed). Then each mutant meets the tests of its line, those of its function and those of
its module, the quickest first, until one fails. Prints the diff of each survivor.

Survivors that mean the same, and are left: `<` for `!=` where a value has one side
only, `is` for `==` of small numbers; how many boxes, words or rows are taken at once (a
loop takes the rest); limits of random trials; counts and examples inside a message; the
indent of a file.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module, util
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
import coverage
import pytest
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("models", "clip", "evaluation", "datasets")
# imported once, before any copy of the package: they take most of the start
HEAVY = ("torchvision", "open_clip", "mmengine.runner", "mmdet.apis", "mmyolo.models")
SECONDS = 30.0  # processor time of the tests, for one mutant
MEMORY = 12 * 2**30  # a mutant may ask for any amount


@dataclass
class Passed:
    """What the tests pass through, without a mutant."""

    seconds: dict[str, float]  # processor time of each test that passes
    lines: dict[str, dict[int, set[str]]]  # file -> line -> tests

    @cached_property
    def outside(self) -> set[str]:
        """Tests of what the import makes: they pass through no line themselves."""
        inside = (t for its in self.lines.values() for t in its.values())
        return {*self.seconds}.difference(*inside)

    def tests(self, mutant: MutationSpec, tree: ast.Module) -> list[str]:
        """The tests to run: of the line, the function, the module; quick ones first."""
        lines = self.lines.get(str(mutant.module_path), {})
        first, last = mutant.start_pos[0], mutant.end_pos[0]
        spans = [(0, sys.maxsize)]
        for node in ast.walk(tree):
            if isinstance(node, (ast.stmt, ast.excepthandler)):
                end = node.end_lineno or node.lineno
                if node.lineno <= first and last <= end:
                    spans.append((node.lineno, end))
        spans.append((first, last))
        chosen: dict[str, None] = {}
        for low, high in sorted(set(spans), key=lambda span: span[1] - span[0]):
            found = {t for k, tests in lines.items() if low <= k <= high for t in tests}
            if not chosen and not found:  # a line of the import
                found = self.outside
            chosen.update(dict.fromkeys(sorted(found, key=lambda t: self.seconds[t])))
        budget, kept = SECONDS, []
        for test in chosen:
            if self.seconds[test] <= budget:
                budget -= self.seconds[test]
                kept.append(test)
        return kept


class Recorder:
    """A plugin of pytest: each test's processor time, and its name to coverage.

    Which tests a mutant meets should not depend on what else the machine does.
    """

    def __init__(self, cov: coverage.Coverage) -> None:
        self.cov, self.seconds, self.failed = cov, dict[str, float](), set[str]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time a test."""
        self.cov.switch_context(item.nodeid)
        start = sum(os.times()[:4])
        result = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        self.cov.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what fails or is skipped."""
        if not report.passed:
            self.failed.add(report.nodeid)


class Chosen:
    """A plugin of pytest: only these tests, in this order, each with a time limit."""

    def __init__(self, tests: Sequence[str], seconds: dict[str, float]) -> None:
        self.rank, self.seconds = {t: i for i, t in enumerate(tests)}, seconds

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out and sort."""
        items[:] = [item for item in items if item.nodeid in self.rank]
        items.sort(key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin the limit, which ends the process."""
        signal.alarm(20 + round(5 * self.seconds[item.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Leave a note of what fails."""
        if report.failed:
            Path("failed").write_text(report.nodeid)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("work_dirs/mutants"))
    args = parser.parse_args(argv)
    work = args.work.resolve()
    copy_checkout(work / "copy")
    os.chdir(work / "copy")
    os.environ["PYTHONPATH"] = str(work / "copy")
    sys.path.insert(0, str(work / "copy"))
    sys.dont_write_bytecode = True  # two mutants of one second have one date
    import_heavy()
    passed = record(work / "passed")
    with use_db(work / f"seed_{args.seed}.sqlite", WorkDB.Mode.create) as database:
        survivors, killers = try_mutants(database, passed, args.seed, args.number)
    # a test that fails in this order without a mutant has noticed nothing
    order = sorted(killers, key=lambda test: passed.seconds[test])
    while order and run_tests(order, passed, work / "control.log"):
        (failed,) = [Path("failed").read_text()]
        print(f"{failed} fails without a mutant: {killers[failed]} killed by it")
        order.remove(failed)
        survivors += killers[failed]
    share = 1 - survivors / args.number
    print(f"seed {args.seed}: {share:.1%} of {args.number} mutants killed")
    return 0


def copy_checkout(copy: Path) -> None:
    """The files of git, as they are now; what the tests read beside them is linked."""
    shutil.rmtree(copy, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    if (ROOT / "data").exists() and not (copy / "data").exists():
        (copy / "data").symlink_to(ROOT / "data")


def import_heavy() -> None:
    """Import what the package builds on, and not the package."""
    spec = util.spec_from_file_location("compat_of_mutants", "kdeov_mm/compat.py")
    assert spec is not None and spec.loader is not None
    compat = util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    compat.apply()
    for name in HEAVY:
        import_module(name)
    import_module("torch").set_num_threads(1)


# -------------------------------------------------------------------- recording


def record(folder: Path) -> Passed:
    """Run the tests of the rooms once, each file in a process of its own.

    A file's recording is kept for as long as it and the package are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    package = b"".join(p.read_bytes() for p in sorted(Path("kdeov_mm").rglob("*.py")))
    passed = Passed({}, {})
    files = [p for room in ROOMS for p in Path("tests", room).rglob("test_*.py")]
    for file in sorted([*files, Path("tests/test_defaults.py")]):
        told = hashlib.sha256(package + file.read_bytes()).hexdigest()[:12]
        kept = folder / f"{file.stem}_{told}.json"
        if not kept.exists():
            print(f"recording {file} ...", flush=True)
            in_child(partial(record_file, file, kept), folder / "log")
        content = json.loads(kept.read_text())
        passed.seconds.update(content["seconds"])
        for name, lines in content["lines"].items():
            mine = passed.lines.setdefault(name, {})
            for line, tests in lines.items():
                mine.setdefault(int(line), set()).update(tests)
    return passed


def record_file(file: Path, kept: Path) -> int:
    cov = coverage.Coverage(data_file=None, source=["kdeov_mm"], config_file=False)
    recorder = Recorder(cov)
    cov.start()
    pytest.main([str(file), *options()], plugins=[recorder])
    cov.stop()
    data, lines = cov.get_data(), dict[str, dict[int, list[str]]]()
    good = recorder.seconds.keys() - recorder.failed
    for name in data.measured_files():
        found = data.contexts_by_lineno(name)
        lines[str(Path(name).relative_to(Path.cwd()))] = {
            line: sorted(good & set(tests)) for line, tests in found.items()
        }
    seconds = {test: recorder.seconds[test] for test in good}
    kept.write_text(json.dumps(dict(seconds=seconds, lines=lines)))
    return 0


def options() -> list[str]:
    folder = Path.cwd().parent / "tmp"
    return ["-q", "-p", "no:cacheprovider", f"--basetemp={folder}"]


# ---------------------------------------------------------------------- mutants


def try_mutants(
    database: WorkDB, passed: Passed, seed: int, number: int
) -> tuple[int, dict[str, int]]:
    """How many of the sample survive; the tests that killed, and how many each."""
    files = [p for room in ROOMS for p in Path("kdeov_mm", room).rglob("*.py")]
    init(sorted(files), database, {})
    survivors, killers, start = 0, dict[str, int](), time.perf_counter()
    for i, (job, mutant, code) in enumerate(drawn(database, seed, number), 1):
        path = Path(mutant.module_path)
        tests = passed.tests(mutant, ast.parse(path.read_text()))
        with replaced(path, code) as diff:
            # most fall to the first few, for which few files are read
            parts = tests[:10], tests[10:]
            log = Path.cwd().parent / "mutant.log"
            killed = any(run_tests(part, passed, log) for part in parts)
        if killed and Path("failed").exists():
            killer = Path("failed").read_text()
            killers[killer] = killers.get(killer, 0) + 1
        survivors += not killed
        outcome = TestOutcome.KILLED if killed else TestOutcome.SURVIVED
        result = WorkResult(WorkerOutcome.NORMAL, None, outcome, diff)
        database.set_result(job, result)
        print(
            f"{i:4d} {outcome.value} {time.perf_counter() - start:5.0f} s  {path}:"
            f"{mutant.start_pos[0]} {mutant.operator_name.partition('/')[2]}",
            flush=True,
        )
        if not killed:
            print(f"{diff}\n({len(tests)} tests)\n", flush=True)
    return survivors, killers


def drawn(
    database: WorkDB, seed: int, number: int
) -> Iterator[tuple[str, MutationSpec, str]]:
    """`number` places, all as likely, and one mutant of each: job, mutant, its code."""
    places: dict[tuple[str, str, tuple[int, int]], list[Any]] = {}
    outside: dict[str, Callable[[MutationSpec], bool]] = {}
    for item in database.work_items:
        (mutant,) = item.mutations
        name = str(mutant.module_path)
        if name not in outside:
            outside[name] = outside_annotations(ast.parse(Path(name).read_text()))
        if outside[name](mutant):
            kind = mutant.operator_name.partition("_")[0]
            places.setdefault((name, kind, mutant.start_pos), []).append(item)
    rng = random.Random(seed)
    for place in rng.sample(sorted(places), len(places)):
        item = rng.choice(sorted(places[place], key=lambda i: str(i.mutations)))
        (mutant,) = item.mutations
        operator = cosmic_ray.plugins.get_operator(mutant.operator_name)
        text = Path(mutant.module_path).read_text()
        code = mutate_code(text, operator(**mutant.operator_args), mutant.occurrence)
        if code is None or not compiles(code):
            continue
        yield item.job_id, mutant, code
        number -= 1
        if not number:
            return


def outside_annotations(tree: ast.Module) -> Callable[[MutationSpec], bool]:
    """Whether a mutant of this file lies outside of the types in annotations."""
    spans = []
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.expr):
                end = (part.end_lineno or part.lineno, part.end_col_offset or 0)
                spans.append(((part.lineno, part.col_offset), end))

    def outside(mutant: MutationSpec) -> bool:
        return not any(low <= mutant.start_pos <= high for low, high in spans)

    return outside


def compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


@contextmanager
def replaced(path: Path, code: str) -> Iterator[str]:
    """A file of the copy with other code, and again its own; gives the difference."""
    before = path.stat()
    text = path.read_text()
    path.write_text(code)
    command = ["diff", "-U1", str(ROOT / path), str(path)]
    diff = subprocess.run(command, capture_output=True, text=True).stdout
    try:
        yield "\n".join(diff.splitlines()[2:])
    finally:
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def run_tests(tests: Sequence[str], passed: Passed, log: Path) -> bool:
    """Whether one of the tests fails, ends the process or takes too long."""
    Path("failed").unlink(missing_ok=True)
    if not tests:
        return False
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.alarm(120)  # until the first test
        plugin = Chosen(tests, passed.seconds)
        return int(pytest.main([*files, *options(), "-x"], plugins=[plugin]))

    return in_child(run, log) != 0


def in_child(work: Callable[[], int], log: Path) -> int:
    """The status of a copy of this process that does the work; what it says is kept."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it has started
        return status
    code = 99
    try:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = work()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
