"""The clients of a fault run: threads that pay in and out, repeat until they have an answer, and write all of it down."""

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.faults.history import FINAL, Attempt, Document, History, Reading
from tests.kit.http import ANSWER_SECONDS, Http, Response

RETRY_SECONDS = (0.1, 0.4)
SERVED_SECONDS = 6.5


class Load:
    """`rate` new transactions a second, drawn from the seed. Users of even place have no late ones."""

    def __init__(self, url: str, users: int, rate: float, seed: int) -> None:
        self.history = History()
        self.surprises: list[str] = []  # answers that no client should ever see
        self.http = Http(url)
        self.final: set[str] = set()
        self._accepted: dict[str, float] = {}
        self._contents: list[Document] = []
        self._lock = threading.Lock()
        self._stops = threading.Event()
        self._gives_up = threading.Event()
        self._seed = seed
        self._pause = 8 / rate
        self._concurrent = ThreadPoolExecutor(8)
        self.users = [self._add_user(number) for number in range(users)]
        self._instants = [datetime.now(UTC) - timedelta(seconds=back) for back in (62, 600, 86_400)]
        clients = [threading.Thread(target=self._pay, args=[number], daemon=True) for number in range(8)]
        self._threads = [*clients, threading.Thread(target=self._look, daemon=True)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 30) -> None:
        """No new ones; what is under way is repeated until it has its answer, or the seconds are over."""
        if self._gives_up.is_set():
            return
        self._stops.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._gives_up.set()
        self._concurrent.shutdown()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS + 10)

    def accepted(self) -> set[str]:
        with self._lock:
            return set(self._accepted)

    def look_up(self, uid: str) -> None:
        """See how a transaction stands, and write it down."""
        sent = time.monotonic()
        answer = self.http.try_send("GET", f"/api/transaction/{uid}")
        if answer and answer.status == 200:
            with self._lock:
                self.history.sightings.append((sent, time.monotonic(), answer.json))
            self._note_final(answer.json)
        elif answer and answer.status < 500:
            self._surprise(f"a look-up of {uid}: {answer.status} {answer.json}")

    def _add_user(self, number: int) -> int:
        answer = self.http.try_send("POST", "/api/user/", {"name": f"user {number}"})
        assert answer
        assert answer.status == 201, answer
        return int(answer.json["id"])

    def _pay(self, number: int) -> None:
        draw = random.Random(f"{self._seed} client {number}")
        while not self._stops.wait(self._pause * draw.uniform(0.5, 1.5)):
            known = self._contents
            if known and draw.random() < 0.08:
                self._repeat_until_answered(draw.choice(known[-500:]), draw)
                continue
            content = self._draw_content(draw)
            self._contents.append(content)
            if draw.random() < 0.1:
                for _ in range(2):  # the same uid, all at once
                    self._concurrent.submit(self._attempt, content, 0)
            self._repeat_until_answered(content, draw)

    def _draw_content(self, draw: random.Random) -> Document:
        place = draw.randrange(len(self.users))
        content = {
            "uid": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
            "user_id": self.users[place],
            "type": draw.choice(["DEPOSIT", "DEPOSIT", "WITHDRAW"]),
            "amount": f"{draw.randint(1, 5000) / 100:.2f}",
        }
        chance = draw.random()
        if chance < 0.15 and place % 2:
            back = draw.choice([90, 3600, 200_000]) * draw.uniform(1, 2)
            content["timestamp"] = (datetime.now(UTC) - timedelta(seconds=back)).isoformat()
        elif chance > 0.9:
            content["timestamp"] = (datetime.now(UTC) + timedelta(seconds=draw.uniform(-40, 40))).isoformat()
        return content

    def _repeat_until_answered(self, content: Document, draw: random.Random) -> None:
        wait = draw.choice([0, 0, 0, 1])
        while not self._attempt(content, wait) and not self._gives_up.is_set():
            time.sleep(draw.uniform(*RETRY_SECONDS))

    def _attempt(self, content: Document, wait: int) -> bool:
        """One request; whether its answer says how the transaction stands, or that it never will."""
        sent = time.monotonic()
        answer = self.http.try_send("PUT", "/api/transaction/", content, wait)
        heard = time.monotonic()
        document = _transaction_of(answer)
        with self._lock:
            status = answer.status if answer else None
            self.history.attempts.append(Attempt(content["uid"], content, sent, heard, status, document))
            if document:
                self._accepted.setdefault(content["uid"], heard)
        if document:
            self._note_final(document)
            return True
        if answer and answer.status in (429, 503):
            if "Retry-After" not in answer.headers or heard - sent > SERVED_SECONDS + wait:
                self._surprise(f"{answer.status} after {heard - sent:.1f} s, {dict(answer.headers)}")
            return False
        if answer:
            self._surprise(f"{content} was answered {answer.status} {answer.json}")
        return answer is not None

    def _look(self) -> None:
        """Reads pasts that are over, again and again, and what stands."""
        draw = random.Random(f"{self._seed} look")
        newest = time.monotonic()
        while not self._stops.wait(0.15):
            if time.monotonic() - newest > 15:
                newest = time.monotonic()
                self._instants.append(datetime.now(UTC) - timedelta(seconds=61))
            user_id, instant = draw.choice(self.users), draw.choice(self._instants[-8:])
            asked = datetime.now(UTC)
            date = instant.isoformat().replace("+00:00", "Z")
            answer = self.http.try_send("GET", f"/api/user/{user_id}/balance/?date={date}")
            if answer and answer.status == 200:
                balance = Decimal(answer.json["balance"])
                self.history.readings.append(Reading(user_id, instant, asked, datetime.now(UTC), balance))
            if self._contents:
                uid = draw.choice(self._contents)["uid"]
                if uid in self._accepted:
                    self.look_up(uid)

    def _note_final(self, document: Document) -> None:
        if document["status"] in FINAL:
            with self._lock:
                self.final.add(document["uid"])

    def _surprise(self, what: str) -> None:
        with self._lock:
            self.surprises.append(what)


def _transaction_of(answer: Response | None) -> Document | None:
    """The transaction in a 200 or 202, or in the 409 that tells of its rejection."""
    if answer and answer.status in (200, 202):
        return dict(answer.json)
    if answer and answer.status == 409 and "transaction" in answer.json:
        return dict(answer.json["transaction"])
    return None
