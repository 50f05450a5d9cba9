"""The project name rule that users of the ancestor rely on."""

import subprocess

import pytest

from adamwprune import checksum


@pytest.mark.parametrize(
    ("parts", "digits"),
    [(("host1", "10-0-0-5", "adamwprune"), "d12f4"), (("unknown", "0-0-0-0", "adamwprune"), "65d9a")],
)
def test_published_vectors(parts, digits):
    """The two vectors of the rule, newline included (5678d would be the first without it)."""
    assert checksum.project_checksum(*parts) == digits


def test_equals_the_shell_pipe_of_the_ancestor():
    """`echo host-ip-dir | md5sum | cut -c1-5`, run for real."""
    line = "h-1-2-3-4-d"
    piped = subprocess.run(["md5sum"], input=f"{line}\n", capture_output=True, text=True, check=True).stdout[
        :5
    ]
    assert checksum.project_checksum("h", "1-2-3-4", "d") == piped


@pytest.mark.parametrize(
    ("model", "slug"),
    [("gpt2", "gpt2"), ("my_model.v2", "my-model-v2"), ("", "adamwprune"), ("a b/c", "a-b-c")],
)
def test_model_slug(model, slug):
    """Everything outside A-Z a-z 0-9 and dash becomes a dash."""
    assert checksum.model_slug(model) == slug


def test_no_address_gives_the_fallback(monkeypatch):
    """The ancestor's fallback never fired: an empty answer must not become an empty field."""
    empty = subprocess.CompletedProcess([], 0, stdout="\n")
    monkeypatch.setattr(checksum.subprocess, "run", lambda *a, **k: empty)
    assert checksum.host_address() == "0-0-0-0"

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(checksum.subprocess, "run", missing)
    assert checksum.host_address() == "0-0-0-0"


def test_first_address_with_dashes(monkeypatch):
    """Of several addresses the first counts."""
    answer = subprocess.CompletedProcess([], 0, stdout="10.0.0.5 172.17.0.1 fe80::1\n")
    monkeypatch.setattr(checksum.subprocess, "run", lambda *a, **k: answer)
    assert checksum.host_address() == "10-0-0-5"
