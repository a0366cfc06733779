-- The role of web and workers: not the owner of the tables, so it can neither change nor drop what protects the books.
-- Postgres of docker-compose.yml runs this when its volume is new. Running it again sets the password of .env (docs/operations/runbook.md).
-- Migrations grant the role the rest: migrations/grants.py.
\getenv password APP_PASSWORD
SELECT 'CREATE ROLE payments_app' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'payments_app') \gexec
ALTER ROLE payments_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
GRANT pg_read_all_stats TO payments_app; -- the oldest snapshot is a metric
