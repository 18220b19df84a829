"""Kill runs at random moments and damage their checkpoints: do they end the same once resumed?

The run is a longer version of the smoke preset of `mnist_mlp` on digits. Two undisturbed runs come
first: they must be identical, and they show how long a run takes. Then runs are killed with SIGKILL
at moments drawn uniformly from start to end. One in four is killed while it writes a checkpoint,
and one in four is killed again after it was resumed. A run that ended before its moment is started
again, with the moment scaled to the time it took. Damage is done to copies of one killed run.

Identical means bit for bit: metrics.jsonl, config.json, the figures, the state in the last
checkpoint, summary.json except for seconds and commit, and no extra or missing file. A resumed run
must also continue from the last complete checkpoint, because one that started over would end the
same.

SIGKILL does not lose data already handed to the kernel, so power failures are not tested.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks import common
from benchmarks.faults_compare import SIGHTS, describe, differences, look
from experiments.studies.mnist_mlp.config import PRESETS
from experiments.training.checkpoints import MANIFEST

ROOT = Path(__file__).parents[1]
AT_ONCE = 2  # Runs at the same time; each keeps about one core busy.
CHECKPOINT_EVERY = 3  # In chunks.
CHUNK = PRESETS["smoke"].evaluate_every
STEPS = {"smoke": 200, "full": 1500}  # With 200, a moment rarely falls into the training.
LONGEST = 300  # Seconds before a run counts as hanging.
TRIES = 4  # Attempts to kill a run before it ends: a moment near the end may come too late.
POLL = 0.0005  # Seconds; writing a checkpoint takes 40 ms, then it has no manifest for 3 ms.


@dataclasses.dataclass(frozen=True)
class Options:
    """How often to kill, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: a short run, two kills and one damage, to see that all works"""
    kills: int | None = None
    """how many runs are killed; None takes 20 (smoke: 2)"""
    seed: int = 0
    """of the random moments"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- Runs and the signals sent to them -----------------------------------------------------------


class Strike(NamedTuple):
    """A signal sent after some seconds, or at the first occurrence of `sight` after them."""

    seconds: float = 0.0
    sight: str = ""
    number: int = signal.SIGKILL


def beginning(steps: int) -> list[str]:
    """Return the options to start a run with; the short one has a small, quickly traced network."""
    return ["--steps", str(steps), *(["--hidden", "20"] if steps == STEPS["smoke"] else [])]


def carry_on(folder: Path, *options: str, strike: Strike | None = None) -> tuple[int, str]:
    """Resume or start a run until it ends or is struck; return exit status and stderr."""
    path = look(folder).path
    command = [sys.executable, "-m", "experiments", "mnist_mlp", "--runs", str(folder)]
    command += ["--checkpoint-every", str(CHECKPOINT_EVERY)]
    command += ["--resume", str(path)] if path else ["--preset", "smoke", *options]
    # Two runs might not fit on a GPU together, and GPUs do not guarantee identical bits.
    settings: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}}
    settings |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **settings)
    try:
        if strike:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(strike.seconds)
            is_seen = SIGHTS.get(strike.sight, lambda found: True)
            while process.poll() is None and not is_seen(look(folder)):
                time.sleep(POLL)
            process.send_signal(strike.number)
        told = process.communicate(timeout=LONGEST)[1]
        return process.returncode, told
    finally:
        process.kill()


def began_at(told: str, unknown: int) -> int:
    """Return the step from which a process trained, according to its message on the first chunk."""
    first = re.search(r"^step ([\d,]+) of", told, re.MULTILINE)
    return int(first[1].replace(",", "")) - CHUNK if first else unknown


def plan(kills: int, seed: int) -> list[list[Strike]]:
    """Draw moments from 0 to 1; of four cases, one is killed at a sight and another one twice."""
    rng = np.random.default_rng(seed)
    sights = ("writing a checkpoint", "no manifest yet", "deleting the oldest")
    cases = []
    for case in range(kills):
        first, second = rng.uniform(0, 1, 2).tolist()
        # From around the first checkpoint on, but early enough that another one will follow.
        aimed = Strike(0.4 + 0.35 * first, sights[case // 4 % len(sights)])
        kinds = ([Strike(first)], [aimed], [Strike(first)], [Strike(first), Strike(second)])
        cases.append(kinds[case % 4])
    return cases


def kill(folder: Path, steps: int, moments: Sequence[Strike], life: float) -> dict[str, Any]:
    """Disturb a run at fractions of its duration, which is only roughly known; retry if late."""
    for attempt in range(TRIES):
        strikes = [strike._replace(seconds=strike.seconds * life) for strike in moments]
        case = disturb(folder / str(attempt), steps, strikes)
        if case["strikes"][0]["status"]:
            break
        life = case["strikes"][0]["seconds"]
    return case


def disturb(folder: Path, steps: int, strikes: Sequence[Strike]) -> dict[str, Any]:
    """Strike and resume a run as often as asked, then finish it; record its state each time."""
    rows: list[dict[str, Any]] = []
    wrong = []
    for strike in (*strikes, None):
        before, started = look(folder), time.perf_counter()
        if before.finished:
            break
        status, told = carry_on(folder, *beginning(steps), strike=strike)
        seconds = round(time.perf_counter() - started, 2)
        began = began_at(told, before.checkpoint if status else steps)
        if status not in ((0, -signal.SIGKILL, 128 + signal.SIGTERM) if strike else (0,)):
            wrong.append(f"exit status {status}: {told}")
        if began != before.checkpoint:
            wrong.append(f"resumed from step {began}, not {before.checkpoint}")
        if strike:
            row = {"sight": strike.sight, "seconds": seconds, "status": status}
            rows.append({**row, **describe(look(folder))})
    return {"strikes": rows, "path": look(folder).path, "differences": wrong}


def terminate(folder: Path, steps: int) -> dict[str, Any]:
    """Send SIGTERM just after a checkpoint; the run must write another after the current chunk."""
    case = disturb(folder, steps, [Strike(sight="two checkpoints", number=signal.SIGTERM)])
    (found,) = case["strikes"]
    is_extra = found["checkpoint"] % (CHECKPOINT_EVERY * CHUNK) > 0 == found["again"]
    if found["status"] != 128 + signal.SIGTERM or not is_extra:
        case["differences"].append(f"exit status {found['status']}, extra checkpoint: {is_extra}")
    return case


# ---- Damage --------------------------------------------------------------------------------------


def largest(checkpoint: Path) -> Path:
    """Find the largest file."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(checkpoint: Path) -> None:
    """Cut the largest file in half."""
    os.truncate(largest(checkpoint), largest(checkpoint).stat().st_size // 2)


def flip(checkpoint: Path) -> None:
    """Flip a bit in the middle of the largest file."""
    content = bytearray(largest(checkpoint).read_bytes())
    content[len(content) // 2] ^= 1
    largest(checkpoint).write_bytes(content)


def unsign(checkpoint: Path) -> None:
    """Remove the manifest."""
    (checkpoint / MANIFEST).unlink()


def exchange(checkpoint: Path) -> None:
    """Replace the checkpoint by that of the same step of a run with another learning rate."""
    folder = checkpoint.parents[3] / "foreign"
    carry_on(folder, "--steps", checkpoint.name, "--learning-rate", "0.2")
    (foreign,) = folder.glob(f"mnist_mlp/*/checkpoints/{checkpoint.name}")
    shutil.rmtree(checkpoint)
    foreign.rename(checkpoint)


CHANGED, UNSIGNED = r"its file \S+ is changed", f"it has no readable {MANIFEST}"
# Damage to the newest checkpoint, and to the one before it, with the expected reasons for refusal.
DAMAGES: dict[str, Sequence[tuple[Callable[[Path], None], str]]] = {
    "a file cut in half": [(truncate, CHANGED)],
    "a bit flipped": [(flip, CHANGED)],
    "no manifest": [(unsign, UNSIGNED)],
    "of another learning rate": [(exchange, "of a run with another config")],
    "both: cut in half, no manifest": [(truncate, CHANGED), (unsign, UNSIGNED)],
}


def damage(killed: Path, folder: Path, steps: int, name: str) -> dict[str, Any]:
    """Damage the checkpoints of a copy of a killed run, resume it, and check its messages."""
    shutil.copytree(killed, folder)
    (run,) = (folder / "mnist_mlp").iterdir()
    newest_first = sorted(look(folder).whole, reverse=True)
    left = [*newest_first, 0][len(DAMAGES[name])]
    for (spoil, _), step in zip(DAMAGES[name], newest_first, strict=False):
        spoil(run / "checkpoints" / str(step))
    status, told = carry_on(folder)
    source = f"that of step {left}" if left else "the beginning"
    said, wrong = [], [f"exit status {status}: {told}"] if status else []
    for (_, reason), step in zip(DAMAGES[name], newest_first, strict=False):
        line = f"checkpoint {run}/checkpoints/{step} is refused: (.*{reason}.*). It is now in .*"
        match = re.search(f"^{line}; the run continues from {source}.$", told, re.MULTILINE)
        said.append(f"{step}: {match[1]}" if match else "")
        wrong += [] if match else [f"{step} not refused for {reason!r}: {told}"]
    if (began := began_at(told, steps)) != left:
        wrong.append(f"resumed from step {began}, not {left}")
    return {"damage": name, "said": said, "from": source, "path": run, "differences": wrong}


# ---- Report --------------------------------------------------------------------------------------


def tally(cases: Sequence[dict[str, Any]]) -> str:
    """Return how many cases ended identical."""
    return f"{sum(case['identical'] == 'yes' for case in cases)} of {len(cases)}"


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    (terminated,) = result["sigterm"]["strikes"]
    kills = []
    for number, case in enumerate(result["kills"], 1):
        verdicts = ["killed again"] * (len(case["strikes"]) - 1) + [case["identical"]]
        for found, last in zip(case["strikes"], verdicts, strict=True):
            steps = [f"{found[name]:,}" for name in ("checkpoint", "row", "again")]
            after = f"{found['seconds']:.2f}{' (aimed)' if found['sight'] else ''}"
            kills.append([f"{number}: {found['what']}", after, *steps, last])
    header = ["there was", "after s", "checkpoint", "last row", "steps again", "identical"]
    damages = [
        [f"{case['damage']}; {said}", case["from"], case["identical"]]
        for case in result["damages"]
        for said in case["said"]
    ]
    parts = [
        "# Runs that are killed, and checkpoints that are damaged",
        f"`python -m benchmarks.faults` on {common.describe(result['env'])}.",
        f"`mnist_mlp --preset smoke {' '.join(beginning(result['steps']))} --checkpoint-every "
        f"{CHECKPOINT_EVERY}`, {CHUNK} steps a chunk, {AT_ONCE} runs at a time; undisturbed, "
        f"{result['life']:.1f} s. What identical means is in the docstring of "
        "`benchmarks/faults.py`.",
        f"## SIGKILL: {tally(result['kills'])} identical to the undisturbed run",
        f"Moments over the life of a process, from seed {result['seed']}; an aimed kill waits for "
        "a sight. Rows after the checkpoint are done again, and the chunk that had none yet.",
        common.table(header, kills),
        f"## Damage: {tally(result['damages'])} identical",
        "Done to a killed run with two checkpoints; beside it, what was said of each refused.",
        common.table(["damage", "goes on from", "identical"], damages),
        "## SIGTERM",
        f"Sent just after a checkpoint was due: exit status {terminated['status']}, with another "
        f"of step {terminated['checkpoint']:,}. Resumed, identical: "
        f"{result['sigterm']['identical']}.",
    ]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> dict[str, Any]:
    """Kill, damage, compare, print, write; return the result. Exit with an error if any differs."""
    smoke, steps = options.preset == "smoke", STEPS[options.preset]
    kills = (2 if smoke else 20) if options.kills is None else options.kills
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jbn-faults-")))
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        undisturbed = beginning(steps)
        started = time.perf_counter()
        list(pool.map(lambda name: carry_on(root / name, *undisturbed), ("one", "other")))
        life = time.perf_counter() - started
        want, other = (look(root / name).path or root for name in ("one", "other"))
        if found := differences(want, other):
            raise SystemExit(
                f"Expected two undisturbed runs to be identical, but they differ: {found}."
            )

        strike = Strike(sight="two checkpoints")
        killed = pool.submit(carry_on, root / "killed", *undisturbed, strike=strike)
        struck = [
            pool.submit(kill, root / f"kill_{i}", steps, moments, life)
            for i, moments in enumerate(plan(kills, options.seed))
        ]
        terminated = pool.submit(terminate, root / "sigterm", steps)
        killed.result()
        damaged = [
            pool.submit(damage, root / "killed", root / f"damage_{i}", steps, name)
            for i, name in enumerate(list(DAMAGES)[: 1 if smoke else None])
        ]

        def judged(case: dict[str, Any]) -> dict[str, Any]:
            wrong = case.pop("differences") + differences(want, case.pop("path"))
            case["identical"] = "; ".join(wrong).replace("\n", " ") or "yes"
            print(*case.values(), flush=True)
            return case

        result = {
            "env": common.environment(),
            "steps": steps,
            "seed": options.seed,
            "life": round(life, 2),
            "kills": [judged(case.result()) for case in struck],
            "sigterm": judged(terminated.result()),
            "damages": [judged(case.result()) for case in damaged],
        }
    markdown = report(result)
    print(f"\n{markdown}")
    if output := options.output or (None if smoke else common.RESULTS):
        common.write(output, "faults", result, markdown)
    cases = [*result["kills"], result["sigterm"], *result["damages"]]
    if any(case["identical"] != "yes" for case in cases):
        raise SystemExit(f"Expected every run to end identical, got {tally(cases)}.")
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(tyro.cli(Options, description=__doc__))
