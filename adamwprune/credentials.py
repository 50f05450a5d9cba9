"""Keys and passwords have no place in a configuration, which run.json, .hydra/ and trackers keep.

Trackers and hubs find theirs in the environment or in ~/.netrc, unread by us. What looks like one is
refused by its name or its form before anything is written, and its value is not repeated. A W&B key of 40
hex digits looks like a revision: only its name tells.
"""

import re
from collections.abc import Iterable
from typing import Any

from adamwprune.errors import ConfigError

# Of a key, of an environment variable, or within a value such as {api_key: ...}.
_NAME = re.compile(
    r"(?:api|access|private|auth|wandb|hf)[_-]?key|secret|passw|credential"
    r"|(?:^|[^a-z])(?<!per_)token(?![a-z_-])",  # but bytes_per_token, tokenizer, max_tokens
    re.IGNORECASE,
)
_NAME_IN_VALUE = re.compile(r"([\w.-]+)['\"]?\s*:")
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}]*)")
_VALUE = re.compile(
    r"""
      (?<![A-Za-z0-9])(?:
        sk-[\w-]{16,}                        # OpenAI, Anthropic and others
      | hf_[A-Za-z0-9]{16,}                  # Hugging Face
      | wandb_v\d_\w{16,}                    # W&B, besides its 40 hex digits
      | (?:AKIA|ASIA)[A-Z0-9]{16}            # AWS
      | (?:gh[pousr]_|github_pat_)\w{20,}    # GitHub
      | glpat-[\w-]{16,}                     # GitLab
      | xox[abeprs]-[\w-]{10,}               # Slack
      )
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY
    | [a-z][a-z0-9+.-]*://[^/?\#\s@]*@       # user and password in an address
    """,
    re.VERBOSE,
)


def refuse_in_arguments(arguments: Iterable[str]) -> None:
    """Refuse a command line with a key or password in it.

    Raises:
        ConfigError: naming the keys, not their values.
    """
    _refuse(tuple(argument.partition("=")[::2]) for argument in arguments)


def refuse_in_values(values: Iterable[tuple[str, Any]]) -> None:
    """Refuse a configuration, as dotted keys and values, with a key or password in it.

    Raises:
        ConfigError: naming the keys, not their values.
    """
    _refuse((key, "" if value is None else str(value)) for key, value in values)


def redacted(address: str) -> str:
    """An address without the user and password in it."""
    return re.sub(r"(?<=://)[^/?#\s@]*@", "", address)


def _refuse(pairs: Iterable[tuple[str, str]]) -> None:
    if found := [_shown(key) for key, value in pairs if _is_credential(key, value)]:
        raise ConfigError(
            *(
                f"{key}: looks like a key or password, which records and trackers would keep; leave it out, "
                "and set it in the environment (WANDB_API_KEY, HF_TOKEN) or in ~/.netrc"
                for key in found
            )
        )


def _is_credential(key: str, value: str) -> bool:
    if _VALUE.search(key) or _VALUE.search(value):
        return True
    names = _VARIABLE.findall(value)
    if "{" in value:
        names += _NAME_IN_VALUE.findall(value)
    if value not in ("", "null", "None"):
        names.append(key)
    return any(_NAME.search(name) for name in names)


def _shown(key: str) -> str:
    return "an argument" if _VALUE.search(key) else key.lstrip("+~") or "an argument"
