"""What an exercise is, and where to find them: one module a notebook, each with its `EXERCISES`.

How an answer is run and compared with the solution stands in `answers`.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from common.exercises.answers.alike import Case, NotYet
from common.exercises.answers.limit import TooSlow
from common.exercises.answers.outcome import Outcome, Untried, agrees, guarded, must_agree, run
from common.exercises.answers.wording import described, names_of
from common.machine import unknown


@dataclass(frozen=True)
class Exercise:
    """One exercise, whole: what is asked, a solution, and the mistakes that one makes.

    `solution` is a function; its name is the exercise's, its signature the skeleton's, and what it
    does in each of `cases()` is what an answer must do. `mistakes` pairs functions with the
    sentence for a student whose answer does what they do. `facts(answer, *args)` is looked at in
    place of `answer(*args)` where an answer is random. `gradient` asks for the gradients as well,
    and `without` names functions of torch that an answer may not call.

    Three kinds are special. A *fault* has `broken`, code to repair, as the skeleton. A *prediction*
    has an `experiment`, whose result is the number to be predicted; `because` explains it. An
    *open* question has a `rubric` to judge one's own work by, and no verdict.
    """

    solution: Callable
    statement: str
    hints: tuple[str, ...]
    cases: Callable[[], Iterable[Case]] = lambda: (Case(),)
    mistakes: tuple[tuple[Callable, str], ...] = ()
    facts: Callable | None = None
    returns: bool = True  # False where an answer need not return anything
    gradient: bool = False
    without: tuple[str, ...] = ()
    broken: Callable | None = None
    experiment: Callable[[], float] | None = None
    because: str = ""
    rubric: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.solution.__name__

    answer = name  # what the notebook's cell calls it

    @property
    def source(self) -> str:
        """The solution's code."""
        return inspect.getsource(self.solution).strip()

    @property
    def lines(self) -> int:
        """How many lines the solution's body takes, without blank ones."""
        return sum(bool(line.strip()) for line in body_of(self.source))

    @property
    def skeleton(self) -> str:
        """What the student begins with: the faulty code, or the solution's signature and dots."""
        if self.broken:
            code = inspect.getsource(self.broken).strip()
            return code.replace(f"def {self.broken.__name__}(", f"def {self.name}(", 1)
        head = self.source.splitlines()[: -len(body_of(self.source))]
        return "\n".join([*head, "    return ..."])

    def test(self, answer: Callable) -> None:
        """Raise `NotYet`, or `Untried`, unless the answer does in each case what it should."""
        for case in self.cases():
            names = names_of(self.facts, 1)[1:] if self.facts else names_of(self.solution, 0)
            where = described(names, case.args)
            found, expected = self.watch(answer, case), self.expected(case)
            try:
                must_agree(found, expected, case, where or "Your answer", answer)
            except NotYet as mismatch:
                if isinstance(found.error, TooSlow):  # as it would be in every case
                    raise
                raise NotYet(f"{self.recognised(answer)} {mismatch}".strip()) from mismatch

    def expected(self, case: Case) -> Outcome:
        """What should happen in a case: what the solution does, or what the experiment measures."""
        if self.experiment:
            return Outcome(measured(self.experiment))
        return self.watch(self.solution, case)

    def watch(self, answer: Callable, case: Case) -> Outcome:
        """What an answer does in a case, from the same random numbers each time."""
        torch.manual_seed(0)
        look = answer
        if self.facts:
            look = functools.partial(self.facts, guarded(answer, self.returns))
        return run(look, case, self.gradient, self.without)

    def recognised(self, answer: Callable) -> str:
        """The sentence of the listed mistake that does what this answer does, or ""."""
        cases = tuple(self.cases())
        found = [self.watch(answer, case) for case in cases]
        for mistake, sentence in self.mistakes:
            pairs = zip(found, cases, strict=True)
            if all(agrees(outcome, self.watch(mistake, case), case) for outcome, case in pairs):
                return sentence
        return ""

    def still_broken(self, answer: Callable) -> bool:
        """Whether an answer to a fault does what the faulty code does, or fails as it does."""
        torch.manual_seed(0)
        cases = tuple(self.cases())
        faults = [self.watch(self.broken, case) for case in cases]
        if all(agrees(f, f, case) for f, case in zip(faults, cases, strict=True)):
            pairs = zip(faults, cases, strict=True)
            return all(agrees(self.watch(answer, case), f, case) for f, case in pairs)
        return all(self.failure(answer, case) == self.failure(self.broken, case) for case in cases)

    def failure(self, answer: Callable, case: Case) -> str:
        """What is wrong with an answer in a case, in words, or ""."""
        try:
            must_agree(self.watch(answer, case), self.expected(case), case, "", self.solution)
        except (NotYet, Untried) as mismatch:
            return repr(mismatch)
        return ""


def body_of(source: str) -> list[str]:
    """The lines below a function's signature."""
    lines = source.splitlines()
    end = next(i for i, line in enumerate(lines, 1) if line.rstrip().endswith(":"))
    return lines[end:]


@functools.cache
def measured(experiment: Callable[[], float]) -> float:
    """What an experiment gives; it fixes its own random numbers, so that once is enough."""
    return experiment()


@functools.cache
def catalogue() -> dict[str, Exercise]:
    """Every exercise by "notebook.name", such as "lenet.output_size"."""
    found = {}
    for _, notebook, package in pkgutil.iter_modules(__path__):
        if not package:
            module = importlib.import_module(f"{__name__}.{notebook}")
            found |= {f"{notebook}.{e.name}": e for e in module.EXERCISES}
    return found


def find(name: str) -> Exercise:
    """The exercise called `name`. Raises ValueError for an unknown one."""
    if name not in catalogue():
        raise ValueError(unknown("exercise", name, tuple(catalogue())))
    return catalogue()[name]
