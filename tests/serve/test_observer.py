"""Several observers are told of an event in their order, and only those that listen to it."""

from foveate_serve.observer import Changes, Observer, Observers


class Noting(Observer):
    def __init__(self, name: str, told: list[tuple[str, ...]]) -> None:
        self.name, self.told = name, told

    def on_start(self, model: str, version: str) -> None:
        self.told.append((self.name, model, version))


class NotingLoads(Noting):
    def on_load(self, model: str, version: str, seconds: float) -> None:
        self.told.append((self.name, model, version, str(seconds)))


def test_all_that_listen_are_told_in_their_order() -> None:
    told: list[tuple[str, ...]] = []
    observers = Observers([Noting("a", told), Changes(), NotingLoads("b", told)])
    observers.on_start("cat", "1")
    observers.on_load("cat", "1", 2.0)
    observers.on_cache_lookup("cat", "1", hit=True, seconds=0.1)
    assert told == [("a", "cat", "1"), ("b", "cat", "1"), ("b", "cat", "1", "2.0")]


def test_no_observer_is_told_of_nothing() -> None:
    observers = Observers([])
    observers.on_start("cat", "1")
    observers.on_change()


async def test_the_change_of_a_state_wakes_those_that_wait_for_it() -> None:
    changes = Changes()
    observers = Observers([Noting("a", []), changes])
    waited = changes.next()
    observers.on_change()
    assert waited.is_set()
    assert not changes.next().is_set()
