"""NVIDIA's `aiperf` as it comes: load on chat, completions and messages, streamed, by clients that keep their connections.

aiperf_client.py ADDRESS MODEL EVAL [REQUESTS [CLIENTS]]; the tokenizer is that of the model beside EVAL."""
import json
import os
import subprocess
import sys
import tempfile

from eval_cases import check

address, model, eval_path, *sizes = sys.argv[1:]
requests, clients = (int(size) for size in sizes + ["24", "4"][len(sizes):])
tokenizer = os.path.join(os.path.dirname(os.path.abspath(eval_path)), "fp4")
program = os.path.join(os.path.dirname(sys.executable), "aiperf")
# nothing is asked of a model hub, and nothing told to anybody
environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}

for endpoint in "chat", "completions", "messages":
    with tempfile.TemporaryDirectory() as results:
        ran = subprocess.run(
            [program, "profile", "--model", model, "--url", f"http://{address}", "--endpoint-type", endpoint,
             "--streaming", "--tokenizer", tokenizer, "--concurrency", str(clients), "--request-count", str(requests),
             "--isl", "100", "--osl", "24", "--extra-inputs", "ignore_eos:true", "--ui", "simple",
             "--artifact-dir", results],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
        )
        if ran.returncode != 0:
            sys.exit(f"aiperf: exit status {ran.returncode}\n{ran.stdout}")
        with open(os.path.join(results, "profile_export_aiperf.json"), encoding="utf-8") as file:
            found = json.load(file)
        with open(os.path.join(results, "profile_export.jsonl"), encoding="utf-8") as file:
            records = [json.loads(line)["metrics"] for line in file]
    check(f"{endpoint}: errors", found["error_summary"], [])
    check(f"{endpoint}: answered", found["request_count"]["avg"], requests)
    if endpoint != "messages":  # where answers end by themselves
        check(f"{endpoint}: output tokens", found["total_usage_completion_tokens"]["avg"], 24 * requests)
    # each client opens one connection and keeps it
    opened = sum(not record["http_req_connection_reused"]["value"] for record in records)
    if opened > clients:
        sys.exit(f"{endpoint}: {opened} connections for {clients} clients")
    for name in "request_throughput", "output_token_throughput":
        print(f"{endpoint}: {name} {found[name]['avg']:.1f} {found[name]['unit']}")
    for name in "time_to_first_token", "inter_token_latency":
        print(f"{endpoint}: {name} p50 {found[name]['p50']:.1f}, p99 {found[name]['p99']:.1f} {found[name]['unit']}")
