"""What pytest does in the copy: it collects once, then runs each drawn mutant's tests in a fork.

Mutmut's own loop has pytest collect anew for every mutant, which takes seconds where most tests take
milliseconds. Which tests call the changed function, and how long they take, it has found out before.
"""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

# Without the search for a smaller example.
settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None, deadline=None)
settings.load_profile("mutants")

# Exit codes as mutmut has them.
SURVIVED, KILLED, NO_TESTS, TIMEOUT = 0, 1, 33, 36


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the mutants in place of the tests, where tests/mutations/__main__.py asks for it."""
    if "RUN_MUTANTS" not in os.environ:
        return None
    folder = Path(__file__).resolve().parents[1]
    statistics = json.loads((folder / "mutmut-stats.json").read_text(encoding="utf-8"))
    seconds, tests = statistics["duration_by_test"], statistics["tests_by_mangled_function_name"]
    items = {item.nodeid: item for item in session.items}
    # Written since then: they may call anything. What fails without a mutation shows nothing.
    new = {name for name in items.keys() - seconds.keys() if _verdict("", [items[name]], 120.0) == SURVIVED}
    called = Counter(test for calling in tests.values() for test in calling)
    for file in sorted(folder.rglob("*.meta")):
        content = json.loads(file.read_text(encoding="utf-8"))
        codes = content["exit_code_by_key"]
        for name in [name for name, code in codes.items() if code is None]:
            calling = tests.get(name.replace("__init__.", "").partition("__mutmut_")[0], [])
            # A test that calls little else is the likeliest to notice.
            ordered = sorted(new | items.keys() & set(calling), key=lambda t: called[t] * seconds.get(t, 0.0))
            limit = 20.0 + 3.0 * sum(seconds.get(test, 1.0) for test in ordered)
            codes[name] = _verdict(name, [items[test] for test in ordered], limit)
            file.write_text(json.dumps(content), encoding="utf-8")
    return True


def _verdict(mutant: str, items: list[pytest.Item], limit: float) -> int:
    """What becomes of a mutant within so many seconds."""
    if not items:
        return NO_TESTS
    child = os.fork()
    if child == 0:
        os.environ["MUTANT_UNDER_TEST"] = mutant
        os._exit(_run(items))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return SURVIVED if status == 0 else KILLED
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMEOUT


def _run(items: list[pytest.Item]) -> int:
    try:
        for item in items:
            if any(report.failed for report in runtestprotocol(item, nextitem=None, log=False)):
                return KILLED
    except BaseException:
        return KILLED
    return SURVIVED
