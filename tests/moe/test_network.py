"""Ranks in network namespaces of their own, joined by a bridge: nothing but the network is shared.

Needs Linux, root and the command ``ip``; a machine without them fails these tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PORT = 29431


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[str]]:
    """Namespaces with the addresses 10.91.0.1, 10.91.0.2, ... on an interface ``net``."""
    prefix = f"pk{os.getpid()}"
    names = [f"{prefix}n{i}" for i in range(count)]
    bridge = f"{prefix}b"
    made = []
    try:
        for name in [bridge, *names]:
            ip(f"netns add {name}")
            made.append(name)
        ip(f"-n {bridge} link add bridge type bridge")
        ip(f"-n {bridge} link set bridge up")
        for i, name in enumerate(names):
            ip(f"-n {name} link add net type veth peer name port{i} netns {bridge}")
            ip(f"-n {bridge} link set port{i} master bridge up")
            ip(f"-n {name} addr add 10.91.0.{i + 1}/24 dev net")
            ip(f"-n {name} link set net up")
            ip(f"-n {name} link set lo up")
        yield names
    finally:
        for name in made:
            ip(f"netns del {name}")


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_across_namespaces(num_ranks: int) -> None:
    """Two ranks share a namespace and its host name: a node; with two ranks each has its own."""
    per_node = 1 if num_ranks == 2 else 2
    with namespaces(num_ranks // per_node) as names:
        ranks = []
        for rank in range(num_ranks):
            name = names[rank // per_node]
            call = [sys.executable, "-m", "tests.moe.gloo_calls"]
            arguments = [f"10.91.0.1:{PORT}", str(num_ranks), str(rank), "net"]
            own_name = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
            ranks.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *own_name, *call, *arguments],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            answers = [rank.communicate(timeout=120) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    for rank, (printed, errors) in zip(ranks, answers, strict=True):
        assert rank.returncode == 0, errors
        assert json.loads(printed) == {"same": True, "ranks_per_node": per_node}
