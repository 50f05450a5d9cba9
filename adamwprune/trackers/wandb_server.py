"""What is asked of a W&B server: whether to talk to it at all, and how far it has got with a run.

Behaviour measured with W&B 0.31.0.
"""

import json
import logging
import netrc
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adamwprune.trackers.backend import first_line
from adamwprune.trackers.wandb_files import STEP

logger = logging.getLogger(__name__)

# Seconds for a server to give any answer before a run goes offline.
PROBE = 3.0

# What WANDB_MODE may hold, in the words of `mode`; it is the default of `mode: auto`.
ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# The hosted service has two addresses; W&B takes a key of the second for the first.
_UPSTREAM = {"api.forge.coreweave.com": "api.wandb.ai"}
# As W&B asks itself when it resumes a run. `historyTail` is a JSON list of rows, each as JSON.
_LAST_ROW = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
    model(name: $project, entityName: $entity) {
        bucket(name: $name, missingOk: true) { historyTail }
    }
}
"""


def choose_mode(asked: str, base_url: str) -> tuple[str, str]:
    """The mode of a run, and why it is offline without having been asked to be.

    Never prompts: without a key W&B would ask for one in the middle of training.
    """
    if asked == "auto":
        asked = ENVIRONMENT_MODES.get(os.environ.get("WANDB_MODE", ""), "auto")
    if asked in ("offline", "disabled"):
        return asked, ""
    if not has_key(base_url):
        return "offline", "no key in WANDB_API_KEY or netrc; `wandb login` stores one"
    if asked == "auto" and not answers(base_url):
        return "offline", f"no answer from {base_url} within {PROBE:g} s"
    return "online", ""


def has_key(base_url: str) -> bool:
    """Whether the environment or a netrc file holds a key for the server; it is not kept."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    host = urlsplit(base_url).netloc
    try:
        entries = netrc.netrc(str(file))
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    found = entries.authenticators(host) or entries.authenticators(_UPSTREAM.get(host, host))
    return bool(found and found[2])


def answers(base_url: str) -> bool:
    """Whether the server gives any answer but an error of its own (>= 500) within PROBE seconds."""
    answered = threading.Event()

    def ask() -> None:
        try:
            opener = urllib.request.build_opener()
            opener.open(f"{base_url.rstrip('/')}/graphql", data=b"{}", timeout=PROBE).close()
        except urllib.error.HTTPError as error:
            if error.code < 500:
                answered.set()
        except Exception as error:  # whatever it was, it was no answer
            logger.debug("probe of %s: %s", base_url, first_line(error))
        else:
            answered.set()

    # In a thread: the timeout of a socket does not cover the look-up of its name.
    thread = threading.Thread(target=ask, name="wandb-probe", daemon=True)
    thread.start()
    thread.join(PROBE)
    return answered.is_set()


def last_step_on_server(run: Any, timeout: float) -> int:
    """The step of the last row that the server has of a run of the wandb package; -1 for none.

    Neither the run's summary nor its `starting_step` can tell: W&B sends the summary before the rows,
    so that after a kill it may name a step whose row never left (of a run's first 15 s, always).

    Args:
        run: the run, begun online.
        timeout: seconds that an answer may take.

    Raises:
        WandbApiFailedError: the server did not answer, or not with a run.
        KeyError: its last row has no step; it is not of this program.
    """
    from wandb.apis.public.service_api import ServiceApi

    variables = {"project": run.project, "entity": run.entity, "name": run.id}
    answer = ServiceApi(run.settings).execute_graphql(_LAST_ROW, variables, timeout=timeout)
    bucket = (answer.get("model") or {}).get("bucket") or {}
    rows = [json.loads(row) for row in json.loads(bucket.get("historyTail") or "[]")]
    return max((row[STEP] for row in rows), default=-1)
