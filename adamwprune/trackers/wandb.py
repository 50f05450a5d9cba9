"""Weights & Biases: online where a key and a server exist, else offline with the line to upload it.

Every row is one history record at its own `trainer/step` and time. W&B's own step is not used:
it would drop rows below it after a resume and hold each row until the next. Final values go to
the run's summary as `final/...` and `best/...`. Behaviour measured with W&B 0.31.0.
"""

import logging
import netrc
import os
import shlex
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.ranges import Positive
from adamwprune.trackers.backend import Backend, environment, first_line, public_config
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.rows import Entry

PACKAGES = {"wandb": "wandb>=0.31,<0.32"}

logger = logging.getLogger(__name__)

STEP = "trainer/step"
# Seconds for a server to give any answer before a run goes offline.
PROBE = 3.0
# Exit code of a run that was stopped to be continued.
PREEMPTED = 75

# What WANDB_MODE may hold, in the words of `mode`; it is the default of `mode: auto`.
_ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# The hosted service has two addresses; W&B takes a key of the second for the first.
_UPSTREAM = {"api.forge.coreweave.com": "api.wandb.ai"}


def wandb(
    *,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    base_url: str | None = None,
    init_timeout: Positive = 10.0,
    flush_interval: Positive = 1.0,
    finish_timeout: Positive = 30.0,
    required: bool = False,
) -> Callback:
    """The tracker `wandb`.

    Args:
        project: None is the run's project.
        entity: user or team; None is the account's default.
        mode: auto is WANDB_MODE if set, else online where a key exists and the server answers
            within 3 s, else offline. Where online fails, the run is recorded offline.
        base_url: server; None is WANDB_BASE_URL, else the hosted service.
        init_timeout: seconds that an online start may take, before some 10 s of W&B's own.
        flush_interval: seconds between writes to disk: what a SIGKILL loses offline.
        finish_timeout: seconds that the end of a run waits for W&B.
        required: whether the run ends with exit code 6 if a row is missing at its end.
    """
    backend = WandB(
        project=project,
        entity=entity,
        mode=mode,
        base_url=base_url,
        settings={
            "init_timeout": init_timeout,
            "x_transaction_log_flush_interval": flush_interval,
            # Sooner than our own deadline, so that W&B can still say what it could not send.
            "finish_timeout": finish_timeout * 2 / 3,
        },
    )
    return Mirror(backend, finish_timeout=finish_timeout, required=required)


class WandB(Backend):
    """The backend: one run object of the wandb package, never the package's global run."""

    name = "wandb"
    idempotent = False

    def __init__(
        self,
        *,
        project: str | None,
        entity: str | None,
        mode: str,
        base_url: str | None,
        settings: dict[str, Any],
    ):
        super().__init__()
        self.project = project
        self.entity = entity
        self.mode = mode
        self.base_url = base_url
        self.settings = settings
        self._package: Any = None
        self._run: Any = None
        self._axes: set[str] = set()  # metrics that are plotted over STEP
        self._stop = threading.Event()

    def open(self, run: RunInfo) -> None:
        """Start the run; an online start that fails becomes an offline one."""
        # Error reports would go out even offline. W&B announces its service in WANDB_SERVICE,
        # which no later process of ours should join.
        service = os.environ.get("WANDB_SERVICE")
        with environment(WANDB_ERROR_REPORTING="false", WANDB_SERVICE=service):
            import wandb

            self._package = wandb
            session = wandb.setup(wandb.Settings(silent=True)).settings
            base_url = self.base_url or os.environ.get("WANDB_BASE_URL") or session.base_url
            mode, reason = choose_mode(self.mode, base_url)
            try:
                self._run = self._start(wandb, run, mode, base_url)
            except Exception as error:
                if mode != "online":
                    raise
                mode, reason = "offline", f"{base_url}: {first_line(error)}"
                wandb.teardown()  # W&B's process would still hold the run's id
                wandb.setup(wandb.Settings(silent=True))
                self._run = self._start(wandb, run, mode, base_url)
        self._describe(mode, reason)

    def _start(self, package: Any, run: RunInfo, mode: str, base_url: str) -> Any:
        settings = {
            **self.settings,
            "mode": mode,
            "base_url": base_url,
            "finish_timeout_raises": True,
            # The default of both stops the training process on an upload error.
            "stop_on_fatal_error": True,
            "stop_fn": lambda: self._stop.set(),  # W&B copies its settings: a lock cannot be
            # Nothing of the machine, the command line or the repository leaves by this road.
            "host": "",
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
            "disable_git": True,
            "save_code": False,
            # The terminal belongs to the loop, and the log is train.log.
            "console": "off",
            "silent": True,
        }
        known = {key: value for key, value in settings.items() if key in package.Settings.model_fields}
        # The agent of a W&B sweep names its runs itself.
        is_agent = "WANDB_SWEEP_ID" in os.environ
        started = package.init(
            project=self.project or run.project,
            entity=self.entity or None,
            id=None if is_agent else run.run_id,
            name=run.name,
            group=run.group,
            job_type="sweep" if run.group else "train",
            dir=str(run.directory),
            config=public_config(run.config),
            # Ignored offline, where a continued run is a second file with the same id.
            resume="allow" if run.first_step and mode == "online" and not is_agent else None,
            reinit="create_new",
            settings=package.Settings(**known),
        )
        started.define_metric(STEP)
        return started

    def _describe(self, mode: str, reason: str) -> None:
        path = self._run.settings.sync_dir
        self.facts.update(mode=mode, path=path)
        if mode == "online":
            self.facts.update(url=self._run.url)
        if mode == "offline":
            self.facts.update(reason=reason, sync=f"wandb sync --yes {shlex.quote(path)}")
        logger.info("tracker wandb: %s%s, %s", mode, f" ({reason})" if reason else "", path)

    def log(self, entries: list[Entry]) -> None:
        """Store rows at their own step and time; raises ConnectionError once W&B's process is gone."""
        for entry in entries:
            # By name: it is not said whether a glob crosses the slashes of a layer's name.
            for name in entry.row.keys() - self._axes:
                self._run.define_metric(name, step_metric=STEP, step_sync=True)
                self._axes.add(name)
            self._run.log({**entry.row, STEP: entry.step, "_timestamp": entry.time})

    def finish(self, exit_code: int, finals: Row) -> None:
        """Write the summary and end the run; raises TimeoutError where rows are still to be sent."""
        if self.facts["mode"] == "online":
            # Until W&B says that all is sent; the plain form leaves online runs out.
            self.facts["sync"] = f"wandb sync --yes --include-online {shlex.quote(self.facts['path'])}"
        try:
            self._run.summary.update(finals)
            if exit_code == PREEMPTED:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)
        except ConnectionError:
            # W&B's process is gone: without this the interpreter's exit would trip over it too.
            with suppress(Exception):
                self._package.teardown()
            raise
        if self._stop.is_set():
            raise RuntimeError("the server's stop button or a fatal upload error ended the upload")
        if self.facts["mode"] == "online":
            del self.facts["sync"]


def choose_mode(asked: str, base_url: str) -> tuple[str, str]:
    """The mode of a run, and why it is offline without having been asked to be.

    Never prompts: without a key W&B would ask for one in the middle of training.
    """
    if asked == "auto":
        asked = _ENVIRONMENT_MODES.get(os.environ.get("WANDB_MODE", ""), "auto")
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
