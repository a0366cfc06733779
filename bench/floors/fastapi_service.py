"""What one would write first: FastAPI and SQLAlchemy's ORM as their tutorials have it, settled within the request.

It writes the same rows under the same guards, in one transaction with the user's row locked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import Sequence, create_engine
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import DeclarativeBase, Session

from bench.floors import books
from bench.floors.serving import port_of_command_line
from bench.generator import Address
from bench.loads import single_puts
from bench.plan import Run, Values
from bench.stack import server
from shared.settings import settings

PROCESSES = 2
CONNECTIONS = 40  # as many as FastAPI has threads

app = FastAPI()
engine = create_engine(settings().database_url, pool_size=CONNECTIONS) if settings().database_url else None


accept_order = Sequence("transactions_accept_order_seq")


class Base(DeferredReflection, DeclarativeBase):
    """Its classes have the columns that the migrations have made."""


class User(Base):
    __tablename__ = "users"


class Transaction(Base):
    __tablename__ = "transactions"


class Entry(Base):
    __tablename__ = "ledger"


class Event(Base):
    __tablename__ = "events"


if engine:
    Base.prepare(engine)


class Payment(BaseModel):
    uid: UUID
    user_id: int = Field(gt=0)
    type: Literal["DEPOSIT", "WITHDRAW"]
    amount: Decimal = Field(gt=0, max_digits=12, decimal_places=2)


class Outcome(BaseModel):
    uid: UUID
    status: str
    reason: str | None
    balance: Decimal


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@app.put("/api/transaction/")
def put_transaction(payment: Payment, session: Annotated[Session, Depends(get_session)]) -> Outcome:
    known: Any = session.get(Transaction, payment.uid)
    user: Any = session.get(User, payment.user_id, with_for_update=True)
    if user is None:
        raise HTTPException(404, "no such user")
    if known is None:
        known = settle(session, user, payment)
        session.commit()
    return Outcome(uid=payment.uid, status=known.status, reason=known.reason, balance=Decimal(user.balance) / 100)


def settle(session: Session, user: Any, payment: Payment) -> Any:
    amount, before = int(payment.amount * 100), user.balance
    change = amount if payment.type == "DEPOSIT" else -amount
    enough = before + change >= 0
    now = datetime.now(UTC)
    at = max(user.last_history_at or now, now)
    transaction: Any = Transaction(
        uid=payment.uid, user_id=user.id, type=payment.type, amount=amount, accepted_at=now, settled_at=at,
        accept_order=accept_order.next_value(), request_id=payment.uid.hex,
        status="COMPLETED" if enough else "REJECTED", reason=None if enough else "insufficient_funds",
    )  # fmt: skip
    session.add(transaction)
    if enough:
        user.balance, user.last_seq, user.last_history_at = before + change, user.last_seq + 1, at
        session.add(Entry(
            user_id=user.id, seq=user.last_seq, uid=payment.uid, amount=change, balance_after=user.balance,
            effective_at=at, history_at=at, recorded_at=at,
        ))  # fmt: skip
    user.last_event_seq += 1
    session.add(Event(
        lane=user.id % 16, user_id=user.id, user_seq=user.last_event_seq, uid=payment.uid, balance_before=before,
        balance_after=user.balance, occurred_at=at, type=f"transaction.{transaction.status.lower()}",
    ))  # fmt: skip
    return transaction


def spread(run: Run) -> Values:
    return _measure(run, "fastapi_spread", run.plan.users)


def one_user(run: Run) -> Values:
    return _measure(run, "fastapi_one_user", 1)


def _measure(run: Run, name: str, users: int) -> Values:
    with running(run, name) as (address, url):
        return single_puts(run, name, address, url, users)


@contextmanager
def running(run: Run, name: str) -> Iterator[tuple[Address, str]]:
    """The service's address and its database, while the block runs. What it wrote is checked afterwards."""
    url = books.make(run, "fastapi")
    log, driver = run.log("fastapi"), url.replace("postgresql://", "postgresql+psycopg2://")
    with server("bench.floors.fastapi_service", log, DATABASE_URL=driver) as address:
        yield address, url
    books.check(url, name)


if __name__ == "__main__":
    uvicorn.run("bench.floors.fastapi_service:app", port=port_of_command_line(), workers=PROCESSES)
