"""When a worker takes a run for dead."""

from __future__ import annotations

from superexam_rq.worker import Watch


class Clock:
    """Be a clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def looks(watch: Watch, clock: Clock, until: int, score: float = 1.0, every: int = 2) -> list[str]:
    """Look every 2 s at a run whose heartbeat stands still; return what the last look found."""
    found: list[str] = []
    while clock.now < until:
        clock.now += every
        found = watch.look({"run": score})
    return found


class TestWatch:
    """A run is dead when its heartbeat stood still before one's own eyes for long enough."""

    def test_a_heartbeat_that_stands_still(self) -> None:
        """It is noticed after the whole time, not before."""
        clock = Clock()
        watch = Watch(patience=18, clock=clock)
        assert looks(watch, clock, 18) == []
        assert looks(watch, clock, 20) == ["run"]

    def test_a_heartbeat_that_moves(self) -> None:
        """However long the run takes: it lives."""
        clock = Clock()
        watch = Watch(patience=18, clock=clock)
        for beat in range(100):
            assert looks(watch, clock, 5 * beat, score=beat) == []

    def test_an_outage_of_redis_is_nobody_s_death(self) -> None:
        """What stood still while nobody could look did so for no time at all."""
        clock = Clock()
        watch = Watch(patience=18, clock=clock)
        looks(watch, clock, 10)
        clock.now += 60
        assert watch.look({"run": 1.0}) == []
        assert looks(watch, clock, int(clock.now) + 16) == []
        assert looks(watch, clock, int(clock.now) + 2) == ["run"]

    def test_a_run_that_went_is_forgotten(self) -> None:
        """A name that comes again is a new one."""
        clock = Clock()
        watch = Watch(patience=18, clock=clock)
        looks(watch, clock, 10)
        clock.now += 2
        assert watch.look({}) == []
        assert looks(watch, clock, 26) == []
