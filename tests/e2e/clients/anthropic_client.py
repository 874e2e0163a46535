"""The `anthropic` package as it comes: messages, stream and not, tools, thinking, counting, errors."""
import anthropic
from eval_cases import arguments, check, facts

address, model, cases = arguments()
client = anthropic.Anthropic(base_url=f"http://{address}", api_key="unused")
create = client.messages.create


def of(skill, count):
    return [c for c in cases if c["skill"].startswith(skill) and c["correct"]][:count]


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


for case in facts(cases, 3):
    message = create(model=model, messages=case["messages"], max_tokens=128, extra_body={"temperature": 0})
    check(case["id"], text_of(message), case["greedy_text"])
    check("stop reason", message.stop_reason, "end_turn")
    check("usage", (message.usage.input_tokens, message.usage.output_tokens), (len(case["prompt_ids"]), len(case["greedy_ids"])))
    with client.messages.stream(model=model, messages=case["messages"], max_tokens=128, extra_body={"temperature": 0}) as stream:
        written = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(case["id"] + " streamed", (written, final.stop_reason), (case["greedy_text"], "end_turn"))
    counted = client.messages.count_tokens(model=model, messages=case["messages"])
    check("counted", counted.input_tokens, len(case["prompt_ids"]))

case = facts(cases, 1)[0]
cut = create(model=model, messages=case["messages"], max_tokens=3, extra_body={"temperature": 0})
check("cut short", cut.stop_reason, "max_tokens")
stopped = create(model=model, messages=case["messages"], max_tokens=64, extra_body={"temperature": 0}, stop_sequences=[" one"])
check("stopped", (stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", " one"))

for case in of("tool.call", 3):
    tools = [
        {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]}
        for f in (tool["function"] for tool in case["tools"])
    ]
    message = create(model=model, messages=case["messages"], tools=tools, max_tokens=128, extra_body={"temperature": 0})
    check(case["id"], message.stop_reason, "tool_use")
    use = next(block for block in message.content if block.type == "tool_use")
    check("the tool is in the reference's answer", f'invoke name="{use.name}"' in case["greedy_text"], True)
    for value in use.input.values():
        check("its arguments too", str(value) in case["greedy_text"], True)
    with client.messages.stream(model=model, messages=case["messages"], tools=tools, max_tokens=128, extra_body={"temperature": 0}) as stream:
        final = stream.get_final_message()
    streamed = next(block for block in final.content if block.type == "tool_use")
    check(case["id"] + " streamed", (streamed.name, streamed.input), (use.name, use.input))

for case in of("think", 2):
    reasoning, answer = case["greedy_text"].split("</think>")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = create(model=model, messages=case["messages"], max_tokens=2048, extra_body={"temperature": 0}, thinking=thinking)
    thought = "".join(block.thinking for block in message.content if block.type == "thinking")
    check(case["id"], (thought, text_of(message)), (reasoning, answer))

try:
    create(model="no-such-model", messages=case["messages"], max_tokens=8)
    raise SystemExit("an unknown model was answered")
except anthropic.NotFoundError as error:
    check("unknown model", error.body["error"]["type"], "not_found_error")
try:
    create(model=model, messages=[], max_tokens=8)
    raise SystemExit("an empty conversation was answered")
except anthropic.BadRequestError as error:
    check("empty conversation", error.body["error"]["type"], "invalid_request_error")
print("anthropic: messages, stream and not, tools, thinking, counting, errors: as expected")
