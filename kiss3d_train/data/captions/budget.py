"""What answers cost, and how fast they may be asked for."""

from __future__ import annotations

import threading
import time

from kiss3d_train.data.captions.captioner import StopCaptioningError


class Budget:
    """Counts tokens and money, and lets no request begin that the rest may not pay for.

    A request is taken to cost as much as the dearest so far; the first goes alone, so that its
    price is known before others follow.

    Args:
        prompt_price: USD per million tokens sent, pictures included.
        answer_price: USD per million tokens answered.
        max_cost: USD that may be spent, or None.
    """

    def __init__(self, prompt_price: float, answer_price: float, max_cost: float | None) -> None:
        self._prices = prompt_price, answer_price
        self._max_cost = max_cost
        self._dearest: float | None = None
        self._under_way = 0
        self._changed = threading.Condition()
        self.prompt_tokens = 0
        self.answer_tokens = 0

    @property
    def spent(self) -> float:
        """USD."""
        sent, answered = self._prices
        return (self.prompt_tokens * sent + self.answer_tokens * answered) / 1e6

    def begin(self) -> None:
        """Reserve what a request may cost; waits while the first is under way.

        Raises:
            StopCaptioningError: the rest does not suffice.
        """
        if self._max_cost is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._dearest is not None or not self._under_way)
            reserved = (self._under_way + 1) * (self._dearest or 0.0)
            if self.spent + reserved > self._max_cost:
                raise StopCaptioningError(
                    f"another caption may cost more than max_cost = {self._max_cost:g} USD leaves"
                )
            self._under_way += 1

    def end(self, usage: tuple[int, int] | None) -> None:
        """Note a request's tokens, sent and answered, and give back what it had reserved.

        Args:
            usage: None if there was no answer.
        """
        with self._changed:
            if self._max_cost is not None:
                self._under_way -= 1
            if usage is not None:
                sent, answered = self._prices
                self.prompt_tokens += usage[0]
                self.answer_tokens += usage[1]
                cost = (usage[0] * sent + usage[1] * answered) / 1e6
                self._dearest = max(cost, self._dearest or 0.0)
            self._changed.notify_all()


class Pace:
    """Spreads requests evenly over time.

    Args:
        per_minute: requests, or None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 0.0 if per_minute is None else 60 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stopping: threading.Event) -> None:
        """Wait for this request's turn, or until there is no more sense in waiting."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        stopping.wait(turn - now)
