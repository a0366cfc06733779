"""Celery's consumer, changed to retry after any error of the broker, with a short delay.

Celery retries only after a lost or failed connection, with delays up to half a minute. After a refusal of the broker it
would retry at once, without a limit.
"""

import time
from typing import Any, Final

from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from redis import RedisError

from shared.logs import get_logger
from worker.broker import transport, waiting

MAX_RECONNECT_DELAY_SECONDS: Final = 5.0
HEALTHY_CONNECTION_SECONDS: Final = 30.0
RECONNECT_STEP_SECONDS: Final = 0.2
EVENT_FLUSH_INTERVAL_SECONDS: Final = 0.2

log = get_logger("consumer")


class Consumer(consumer.Consumer):
    """A consumer that reconnects for ever, with a delay of one to five seconds."""

    _failures = 0
    _failed_at = 0.0
    _flush_at = 0.0

    def ensure_connected(self, conn: Any) -> Any:
        """Retries until the connection is open, and returns it. Raises WorkerShutdown on a signal."""

        def report(error: Exception, seconds: float) -> None:
            log.warning("broker unreachable", error=_describe(error), next_try_seconds=seconds)

        connected = conn.ensure_connection(
            report,
            None,
            interval_start=1,
            interval_step=1,
            interval_max=MAX_RECONNECT_DELAY_SECONDS,
            callback=_note_waiting,
        )
        self.first_connection_attempt = False
        return connected

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Delays the next try. Raises WorkerShutdown on a signal."""
        self._wait(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Resets the lost connection and delays the next try. Raises WorkerShutdown on a signal."""
        super().on_connection_error_after_connected(exc)
        self._wait(exc)

    def on_send_event_buffered(self) -> None:
        """Sends the events of several tasks as one message, because messages cost more than events."""
        now = time.monotonic()
        if now >= self._flush_at:
            self._flush_at = now + EVENT_FLUSH_INTERVAL_SECONDS
            self.timer.call_after(EVENT_FLUSH_INTERVAL_SECONDS, self._flush_events)

    def shutdown(self) -> None:
        """Sends the events of the last tasks and stops the consumer."""
        self._flush_events()
        super().shutdown()

    def _wait(self, error: Exception) -> None:
        """Waits one to five seconds, longer after each failure. Raises WorkerShutdown on a signal."""
        now = time.monotonic()
        self._failures = self._failures + 1 if now - self._failed_at < HEALTHY_CONNECTION_SECONDS else 1
        self._failed_at = now
        seconds = min(MAX_RECONNECT_DELAY_SECONDS, self._failures)
        fields = {"error": _describe(error), "next_try_seconds": seconds}
        if isinstance(error, (RedisError, OSError)):
            log.warning("worker refused by broker", **fields)
        else:  # a response that is not Redis's, or a bug
            log.error("consumer failed", exc_info=error, **fields)
        if "WRONGTYPE" in str(error):
            self._remove_wrong_types()
        deadline = now + seconds
        while time.monotonic() < deadline:
            _note_waiting()
            time.sleep(RECONNECT_STEP_SECONDS)

    def _remove_wrong_types(self) -> None:
        try:
            transport.remove_wrong_types(list(self.app.amqp.queues.consume_from))
        except Exception as error:  # retried after the next failure
            log.warning("keys of wrong type not removed", error=_describe(error))


def _note_waiting() -> None:
    maybe_shutdown()
    waiting.note()


def _describe(error: Exception) -> str:
    """Returns type and message of an error. For redis-py, repr() lacks the message and str() lacks the type."""
    return f"{type(error).__name__}: {error}"[:500]
