"""Loaded by Python itself in each process of a hooked `up` (see launch.py): installs what FAULTS_HOOK names."""

import importlib
import os
import sys
import traceback

if os.environ.get("PAYMENTS_PROCESS") in ("web", "worker") and os.environ.get("FAULTS_HOOK"):
    try:
        importlib.import_module(os.environ["FAULTS_HOOK"])
    except Exception:  # Python would go on without the hook, and a test would prove nothing
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)
