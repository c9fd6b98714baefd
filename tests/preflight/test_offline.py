"""`offline`: no connection leaves the machine, and what would need one is named."""

import json
import os
import subprocess
import sys

import pytest

from src import errors
from src.paths import ROOT
from src.runner import params

OFFLINE = """
import src, socket
socket.socketpair()
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
calls = [
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    lambda: socket.getaddrinfo("example.org", 80),
]
for call in calls:
    try:
        call()
    except OSError as error:
        print(error)
"""


def fresh(*command: str, text: str = "", **environment: str) -> str:
    """What a Python process of its own prints, with these variables in its environment."""
    done = subprocess.run(
        [sys.executable, *command],
        input=text,
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_offline_lets_no_connection_leave_the_machine():
    said = fresh("-c", OFFLINE, OFFLINE="1").splitlines()
    assert len(said) == 2 and all(
        line.startswith("offline is set, so no connection to ") for line in said
    )
    assert "192.0.2.1" in said[0] and "example.org" in said[1]


def test_offline_is_a_switch_of_common_and_names_what_would_need_a_hub(per_stage):
    with pytest.raises(errors.UserError, match="common.offline must be bool, got 'yes'"):
        params.stage_params({"common": {"offline": "yes"}}, "test")
    assert "offline" not in params.stage_params({"common": {"offline": True}}, "test")["01_dedup"]
    training = {"02_train_model_a": {**per_stage["02_train_model_a"], "clip": "ViT-B-32/openai"}}
    said = fresh(
        "-m", "src.runner.preflight", text=json.dumps(training), OFFLINE="1", HF_HUB_OFFLINE="1"
    )
    found = json.loads(said.splitlines()[-1])
    assert (
        len(found) == 1
        and found[0].startswith("clip: 'ViT-B-32/openai' could not be loaded")
        and "local-dir:" in found[0]
    )
