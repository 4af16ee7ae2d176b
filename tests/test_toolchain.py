"""Toolchain processes: parallel, replaced when they die, never fatal to the user's process, not started on a cache hit."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from native_programs import sum_program, sum_spec, sum_text

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError, ToolchainCrash, UnsupportedError
from effc.compiler.toolchain import Toolchain, toolchain
from effc.runtime.elf import load

#: A worker that obeys its request: the real protocol around behaviour that no real request should be able to cause.
OBEDIENT = """
import json, os, signal, sys, time
from effc.compiler import worker

def obey(payload):
    if "signal" in payload:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), payload["signal"])
    time.sleep(payload.get("sleep", 0))
    if "noise" in payload:
        os.write(1, b"LLVM says something\\n")
    if "raise" in payload:
        from effc.compiler.ir import errors
        raise getattr(errors, payload["raise"], ZeroDivisionError)("said the stage")
    return [os.getpid(), payload.get("text", "")]

worker.HANDLERS = {"obey": obey}
worker.IDLE_SECONDS = float(sys.argv[1])
worker.main()
"""


def obedient(size: int = 2, idle: float = 60) -> Toolchain:
    return Toolchain(size, [sys.executable, "-P", "-c", OBEDIENT, str(idle)])


@pytest.fixture(scope="module")
def pool() -> Any:
    tools = obedient()
    yield tools
    tools.close()


def host() -> list[Any]:
    return Target.host().plain


def test_driver_request_gives_an_object_that_loads() -> None:
    program = sum_program()
    code = base64.b64decode(toolchain().request("driver", {"program": program.to_json(), "target": host()}))
    loaded = load(code, {f"k_{sum_spec(3).digest()}": 4096})
    assert "effc_program" in loaded.symbols


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_crash_is_an_error_with_the_last_words_and_the_pool_goes_on(pool: Toolchain, number: signal.Signals) -> None:
    with pytest.raises(ToolchainCrash, match=f"ended by {number.name} in stage 'obey'.*about to die"):
        pool.request("obey", {"signal": number})
    assert pool.request("obey", {"text": "next"})[1] == "next"


def test_crash_of_one_loses_no_other_request(pool: Toolchain) -> None:
    outcome: dict[int, Any] = {}

    def ask(index: int) -> None:
        try:
            outcome[index] = pool.request("obey", {"signal": 6} if index == 3 else {"text": str(index), "sleep": 0.02})[
                1
            ]
        except ToolchainCrash:
            outcome[index] = "crash"

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome == {i: "crash" if i == 3 else str(i) for i in range(8)}


def test_hang_ends_at_the_time_limit(pool: Toolchain) -> None:
    with pytest.raises(ToolchainCrash, match=r"did not answer within 0\.3 s"):
        pool.request("obey", {"sleep": 60}, timeout=0.3)
    assert pool.request("obey", {"text": "next"})[1] == "next"


def test_errors_keep_their_type_and_text(pool: Toolchain) -> None:
    with pytest.raises(UnsupportedError, match="said the stage"):
        pool.request("obey", {"raise": "UnsupportedError"})
    with pytest.raises(
        LoweringError, match=r"stage 'obey' failed with ZeroDivisionError: said the stage(.|\n)*in obey"
    ):
        pool.request("obey", {"raise": "ZeroDivisionError"})


def test_what_llvm_prints_does_not_disturb_the_answers(pool: Toolchain) -> None:
    assert pool.request("obey", {"noise": 1, "text": "heard"})[1] == "heard"


def test_requests_and_answers_of_megabytes(pool: Toolchain) -> None:
    text = "x" * 5_000_000
    assert pool.request("obey", {"text": text})[1] == text


def test_requests_run_at_the_same_time(pool: Toolchain) -> None:
    pids = {pid for pid, _ in pool.map([("obey", {"sleep": 0.3})] * 2)}
    assert len(pids) == 2


def test_failed_request_is_kept_as_a_file_that_reproduces_it(
    pool: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFC_DUMP", str(tmp_path / "dump"))
    with pytest.raises(ToolchainCrash, match="Reproduce it by") as caught:
        pool.request("obey", {"signal": 6})
    (path,) = (tmp_path / "dump").iterdir()
    assert str(path) in str(caught.value)
    assert json.loads(path.read_text()) == {"kind": "obey", "payload": {"signal": 6}}


def test_real_worker_answers_a_malformed_request_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"kind": "driver", "payload": {"program": {}}}\n')
    with open(tmp_path / "request.json") as file:
        command = [sys.executable, "-P", "-m", "effc.compiler.worker"]
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["error"]["type"] == "KeyError"


def test_idle_process_ends_and_the_next_request_starts_another() -> None:
    tools = obedient(1, idle=0.2)
    first = tools.request("obey", {})[0]
    time.sleep(1.5)
    assert tools.request("obey", {})[0] != first
    tools.close()


def test_processes_end_with_a_killed_parent() -> None:
    script = (
        "import os, signal, sys\nfrom effc.compiler.toolchain import Toolchain\n"
        "tools = Toolchain(1, [sys.executable, '-P', '-c', sys.argv[1], '60'])\n"
        "print(tools.request('obey', {})[0], flush=True)\nos.fork() or os.kill(os.getppid(), signal.SIGKILL)\n"
        "import time; time.sleep(20)"
    )
    parent = subprocess.Popen([sys.executable, "-P", "-c", script, OBEDIENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(pid), "although a forked child of the parent still holds the pipes"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_forked_child_starts_its_own_and_the_parent_keeps_its() -> None:
    payload = {"program": sum_program().to_json(), "target": host()}
    before = toolchain()
    expected = before.request("driver", payload)
    pid = os.fork()
    if pid == 0:
        try:
            fine = toolchain() is not before and toolchain().request("driver", payload) == expected
            toolchain().close()
        finally:
            os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    started = before.started
    assert before.request("driver", payload) == expected
    assert before.started == started


def test_program_in_the_cache_starts_no_process_and_imports_no_mlir(tmp_path: Path) -> None:
    script = """
import json, sys, torch
from effc.compiler import build as b
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.runtime.cache import Cache

class Tools:  # stands in for the pipeline and the emitters; the driver is the real one
    def warm(self):
        pass
    def request(self, kind, payload):
        return json.loads(sys.argv[2])
    def map(self, requests):
        from effc.compiler.worker import HANDLERS
        import base64
        code = base64.b64encode(compile_object(sys.argv[3], Target.host())).decode()
        return [code if kind == "emit" else HANDLERS[kind](payload) for kind, payload in requests]

b.toolchain_key = lambda: "this version"  # the sources may change under a test that runs in a working tree
tools = Tools() if sys.argv[4] == "compile" else None
built = b.build("the text", options={"a": 1}, cache=Cache(sys.argv[1]), tools=tools)
assert built.executable((4,), list(torch.ones(3, 4)))[0].tolist() == [3.0] * 4
print(built.report.from_cache, any(m.startswith("torch_mlir") for m in sys.modules), b.counters["program_hits"])
from effc.compiler import toolchain
assert toolchain._shared is None
"""
    arguments = [str(tmp_path), json.dumps(sum_program().to_json()), sum_text(3)]

    def run(mode: str) -> str:
        command = [sys.executable, "-P", "-c", script, *arguments, mode]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()

    assert run("compile") == "False True 0"
    assert run("load") == "True False 1"
    (program,) = (path for path in (tmp_path / "v1" / "programs").glob("*/*"))
    program.write_bytes(program.read_bytes()[:-20])
    assert run("compile") == "False True 0", "a truncated entry is compiled again"
    assert run("load") == "True False 1"
