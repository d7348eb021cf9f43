#!/usr/bin/env bash
# Learns two tasks of photographs at each budget that training has to work in, and prints what the
# process took: the most heap that was in use, counted by the program's allocator, and the highest
# resident size, which has the pages of the model that were read.
#
# usage: benches/memory.sh FIRST LATER [FLEDGE]
#   FIRST, LATER  task folders: one folder of photos a class
#   FLEDGE        the binary to measure (default: target/release/fledge)
# THREADS says how many to use (default: 2). The default model is fetched if it is missing.
set -euo pipefail
shopt -s inherit_errexit
fledge=${3:-$(dirname "$0")/../target/release/fledge}
exec python3 - "$fledge" "$1" "$2" <<'P'
import json, os, re, subprocess, sys, tempfile

fledge, *tasks = sys.argv[1:]
threads = os.environ.get("THREADS", "2")
got = subprocess.run([fledge, "model", "get"], check=True, capture_output=True, text=True)
weights = os.path.getsize(re.search(r": (.+) \(", got.stdout)[1])


def learn(task, state, budget, *more):
    """One command as a process of its own: its answer and its highest resident bytes."""
    command = [fledge, "learn", "--task", task, "--state", state, "--budget", f"{budget}MiB"]
    command += ["--epochs", "1", "--threads", threads, "--json", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not out:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(out), usage.ru_maxrss * 1024


print(f"threads {threads}, weights {weights} bytes")
print("| pixels | adapted blocks | budget | task | peak heap, bytes | of the budget | peak resident, bytes | of the weights |")
print("|---|---|---|---|---|---|---|---|")
short = False
for resolution, blocks, budget in [(112, "4", 4), (112, "all", 8), (224, "4", 8), (224, "all", 16)]:
    with tempfile.TemporaryDirectory() as folder:
        state = os.path.join(folder, "a.fledge")
        first = ["--resolution", str(resolution), "--adapt-blocks", blocks, "--prompts", "8"]
        for name, task, more in [("first", tasks[0], first), ("later", tasks[1], [])]:
            report, resident = learn(task, state, budget, *more)
            heap = report["peak_heap_bytes"]
            of_budget = heap / (budget << 20)
            of_weights = resident / weights
            print(f"| {resolution} | {blocks} | {budget} MiB | {name} | {heap} | {of_budget:.2f} | {resident} | {of_weights:.2f} |", flush=True)
            short |= of_budget > 1 or of_weights > 1.25
sys.exit("a peak is above what it may be" if short else 0)
P
