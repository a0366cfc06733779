"""The books: users, transactions, ledger, events, and the triggers by which they keep the promises.

Written as SQL, so that what the database holds by itself can be read here. Everything that checks is either
a constraint or a trigger; nothing in it depends on the application being right.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE TABLE users (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT users_pkey PRIMARY KEY,
    name text NOT NULL CONSTRAINT users_name_check CHECK (char_length(name) BETWEEN 1 AND 200),
    idempotency_key text CONSTRAINT users_idempotency_key_key UNIQUE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    balance bigint NOT NULL DEFAULT 0
        CONSTRAINT users_balance_not_negative CHECK (balance >= 0)
        CONSTRAINT users_balance_limit CHECK (balance <= 9000000000000000000),
    last_seq bigint NOT NULL DEFAULT 0,
    last_history_at timestamptz,
    last_event_seq bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 60);

CREATE SEQUENCE transactions_accept_order_seq AS bigint CACHE 1;

CREATE TABLE transactions (
    uid uuid CONSTRAINT transactions_pkey PRIMARY KEY,
    user_id bigint NOT NULL CONSTRAINT transactions_user_id_check CHECK (user_id > 0),
    type text NOT NULL CONSTRAINT transactions_type_check CHECK (type IN ('DEPOSIT', 'WITHDRAW')),
    amount bigint NOT NULL CONSTRAINT transactions_amount_check CHECK (amount > 0),
    requested_at timestamptz,
    lane smallint NOT NULL GENERATED ALWAYS AS ((user_id % 16)::smallint) STORED,
    accept_order bigint NOT NULL,
    status text NOT NULL DEFAULT 'PENDING'
        CONSTRAINT transactions_status_check CHECK (status IN ('PENDING', 'COMPLETED', 'REJECTED')),
    reason text,
    accepted_at timestamptz NOT NULL,
    settled_at timestamptz,
    request_id text,
    parked_at timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    CONSTRAINT transactions_reason_check CHECK ((status = 'REJECTED') = (reason IS NOT NULL)),
    CONSTRAINT transactions_settled_check CHECK ((status = 'PENDING') = (settled_at IS NULL)),
    CONSTRAINT transactions_parked_check CHECK (parked_at IS NULL OR status = 'PENDING')
);
CREATE INDEX transactions_pending ON transactions (lane, accept_order)
    WHERE status = 'PENDING' AND parked_at IS NULL;
CREATE INDEX transactions_parked ON transactions (user_id, accept_order)
    WHERE status = 'PENDING' AND parked_at IS NOT NULL;
CREATE INDEX transactions_statement ON transactions (user_id, accepted_at, accept_order);

CREATE TABLE ledger (
    user_id bigint NOT NULL,
    seq bigint NOT NULL CONSTRAINT ledger_seq_check CHECK (seq > 0),
    uid uuid NOT NULL CONSTRAINT ledger_uid_key UNIQUE,
    amount bigint NOT NULL CONSTRAINT ledger_amount_check CHECK (amount <> 0),
    balance_after bigint NOT NULL CONSTRAINT ledger_balance_after_not_negative CHECK (balance_after >= 0),
    effective_at timestamptz NOT NULL,
    history_at timestamptz NOT NULL,
    late boolean NOT NULL GENERATED ALWAYS AS (effective_at < history_at) STORED,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT ledger_pkey PRIMARY KEY (user_id, seq),
    CONSTRAINT ledger_history_check CHECK (history_at >= effective_at)
);
CREATE INDEX ledger_history ON ledger (user_id, history_at, seq);
-- The late entries that lie across an instant, found without reading the others.
CREATE INDEX ledger_late ON ledger USING gist (user_id, tstzrange(effective_at, history_at)) WHERE late;

CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT events_pkey PRIMARY KEY,
    lane smallint NOT NULL,
    user_id bigint NOT NULL,
    user_seq bigint NOT NULL,
    type text NOT NULL
        CONSTRAINT events_type_check CHECK (type IN ('transaction.completed', 'transaction.rejected')),
    uid uuid NOT NULL,
    balance_before bigint NOT NULL,
    balance_after bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    CONSTRAINT events_user_id_user_seq_key UNIQUE (user_id, user_seq)
);
CREATE INDEX events_lane ON events (lane, id);
"""

GUARDS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'refused: % on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('the ledger is append-only');
CREATE TRIGGER transactions_kept BEFORE DELETE OR TRUNCATE ON transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('transactions are kept for ever');
CREATE TRIGGER users_kept BEFORE DELETE OR TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('users are kept for ever');

-- The WHEN clauses are tested without calling the function: what is allowed pays nearly nothing.
CREATE TRIGGER transactions_final BEFORE UPDATE ON transactions
    FOR EACH ROW WHEN (OLD.status <> 'PENDING')
    EXECUTE FUNCTION refuse('a final transaction never changes');
CREATE TRIGGER transactions_content BEFORE UPDATE ON transactions
    FOR EACH ROW WHEN (
        (OLD.uid, OLD.user_id, OLD.type, OLD.amount, OLD.requested_at, OLD.accepted_at, OLD.accept_order)
        IS DISTINCT FROM
        (NEW.uid, NEW.user_id, NEW.type, NEW.amount, NEW.requested_at, NEW.accepted_at, NEW.accept_order))
    EXECUTE FUNCTION refuse('what was accepted never changes');
CREATE TRIGGER transactions_born_pending BEFORE INSERT ON transactions
    FOR EACH ROW WHEN (NEW.status <> 'PENDING')
    EXECUTE FUNCTION refuse('a transaction begins as PENDING');

-- A late withdrawal lowers the balance at every instant from its own on. Once per statement and user, so that it
-- sees the entries written together; entries of one instant count together (the window's default frame takes all
-- peers). Today's balance less all change since is the balance before, so only entries since are read.
CREATE FUNCTION refuse_negative_past() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    first record;
    lowest numeric;
BEGIN
    FOR first IN
        SELECT user_id, min(effective_at) AS at FROM inserted WHERE late AND amount < 0 GROUP BY user_id
    LOOP
        SELECT today.balance - since.change + since.lowest INTO lowest
        FROM (
            SELECT balance_after AS balance FROM ledger WHERE user_id = first.user_id ORDER BY seq DESC LIMIT 1
        ) AS today, (
            SELECT sum(amount) AS change, min(running) AS lowest FROM (
                SELECT amount, sum(amount) OVER (ORDER BY effective_at) AS running FROM ledger
                WHERE user_id = first.user_id AND history_at >= first.at AND effective_at >= first.at
            ) AS instant
        ) AS since;
        IF lowest < 0 THEN
            RAISE EXCEPTION 'refused: the balance of user % would have been % at a past instant',
                first.user_id, lowest
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_past_not_negative';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE TRIGGER ledger_past_not_negative AFTER INSERT ON ledger
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION refuse_negative_past();
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(GUARDS)
