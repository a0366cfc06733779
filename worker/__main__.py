"""`python -m worker`: one Celery worker with its pool of settling processes."""

from worker.app import app

if __name__ == "__main__":
    app.worker_main(["worker", "--loglevel=info", "--pool=prefork", "--without-gossip", "--without-mingle"])
