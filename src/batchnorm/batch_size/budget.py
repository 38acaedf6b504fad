"""The time that a measurement may take, and the line on the screen that says how it goes on."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Budget:
    """Seconds to spend, phase by phase.

    Attributes:
        phase: What is being measured; "" between phases.
        clock: Returns seconds; another one stands in for it in tests.
    """

    def __init__(self, seconds: float, *, show: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the clock."""
        self.clock, self.phase, self.seconds = clock, "", seconds
        self._start = clock()
        self._end = self._start + seconds
        self._began, self._until = self._start, self._end
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[says]}")
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not (show and console.is_terminal), transient=True
        )
        self._task = self._progress.add_task("", total=1.0, says="")

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._start

    def left(self) -> float:
        """Seconds left to the phase."""
        return self._until - self.clock()

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so many seconds still fits into the phase."""
        return seconds <= self.left()

    def says(self, text: str, done: float | None = None) -> None:
        """Show what is being done, and which share of the phase is done: of its time, unless that is known better."""
        length = self._until - self._began
        share = 1.0 - self.left() / length if done is None and length > 0 else done
        self._progress.update(self._task, says=text, completed=share)

    @contextmanager
    def share(self, phase: str, of_rest: float) -> Generator[None]:
        """Give a phase a share of the seconds that are left."""
        now = self.clock()
        self.phase, self._began, self._until = phase, now, now + max(self._end - now, 0.0) * of_rest
        self._progress.update(self._task, description=phase, says="", completed=0.0)
        yield
        self.phase, self._until = "", self._end

    def __enter__(self) -> "Budget":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
