"""The `openai` package as it comes, on what a model does beside plain text: tools, schemas, reasoning, logprobs, n."""
import json
import math
import re

import openai
from eval_cases import arguments, check, facts

address, model, cases = arguments()
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="unused")
create = client.chat.completions.create
PLAIN = {"chat_template_kwargs": {"thinking": False}}
THINKING = {"chat_template_kwargs": {"thinking": True}}


def of(skill, count):
    """The first `count` cases of a kind that the model answers as it should."""
    return [c for c in cases if c["skill"].startswith(skill) and c["correct"]][:count]


def call_of(text):
    """Name and arguments of the one call in a reply, by the reference's own text."""
    parameters = re.findall(r'parameter name="([^"]+)" string="(true|false)">(.*?)</', text, re.S)
    values = {name: value if kind == "true" else json.loads(value) for name, kind, value in parameters}
    return re.search(r'invoke name="([^"]+)"', text)[1], values


# tools: called, streamed and not
for case in of("tool.call", 4):
    name, values = call_of(case["greedy_text"])
    asked = dict(model=model, messages=case["messages"], tools=case["tools"], temperature=0, max_tokens=128, extra_body=PLAIN)
    choice = create(**asked).choices[0]
    check(case["id"] + " finish", choice.finish_reason, "tool_calls")
    call = choice.message.tool_calls[0]
    check(case["id"], (call.function.name, json.loads(call.function.arguments)), (name, values))
    check(case["id"] + " content", choice.message.content or "", "")

    ids, names, written, finish = [], [], "", None
    for chunk in create(**asked, stream=True):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                check("index of a delta", delta.index, 0)
                ids += [delta.id] if delta.id else []
                names += [delta.function.name] if delta.function.name else []
                written += delta.function.arguments or ""
    check(case["id"] + " streamed", (names, json.loads(written), finish), ([name], values, "tool_calls"))
    check("one id", len(ids), 1)

# tools: what they gave is read
for case in of("tool.answer", 3):
    answer = create(model=model, messages=case["messages"], tools=case["tools"], temperature=0, max_tokens=128, extra_body=PLAIN)
    check(case["id"], answer.choices[0].message.content, case["greedy_text"])

# tools: required, named, none
case = of("tool.call", 1)[0]
tools = case["tools"]
other = tools[-1]["function"]["name"]
question = [{"role": "user", "content": "What is a node?"}]
for choice in ("required", {"type": "function", "function": {"name": other}}):
    answer = create(
        model=model, messages=question, tools=tools, tool_choice=choice, temperature=0, max_tokens=200, extra_body=PLAIN
    ).choices[0]
    check(f"finish with {choice}", answer.finish_reason, "tool_calls")
    called = answer.message.tool_calls[0].function
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    check("the tool exists", called.name in known, True)
    check("all that is required is there", set(known[called.name]["required"]) <= set(json.loads(called.arguments)), True)
    if choice != "required":
        check("the named tool", called.name, other)
none = create(model=model, messages=question, tools=tools, tool_choice="none", temperature=0, max_tokens=64, extra_body=PLAIN)
check("no call", none.choices[0].message.tool_calls, None)

# schemas: the model's own answer where it follows the schema anyway, and a valid one where it does not
for case in of("json", 3):
    schema = {"type": "json_schema", "json_schema": {"name": "reply", "schema": case["response_format"]}}
    answer = create(model=model, messages=case["messages"], response_format=schema, temperature=0, max_tokens=128, extra_body=PLAIN)
    check(case["id"], answer.choices[0].message.content, case["greedy_text"])
odd = {
    "type": "object", "additionalProperties": False, "required": ["kind", "count"],
    "properties": {"kind": {"enum": ["node", "pod"]}, "count": {"type": "integer", "minimum": 3, "maximum": 7}},
}
schema = {"type": "json_schema", "json_schema": {"name": "odd", "schema": odd, "strict": True}}
found = create(model=model, messages=question, response_format=schema, temperature=1, seed=5, max_tokens=128, extra_body=PLAIN)
value = json.loads(found.choices[0].message.content)
check("an odd schema", (value["kind"] in ("node", "pod"), 3 <= value["count"] <= 7, set(value)), (True, True, {"kind", "count"}))
anything = create(
    model=model, messages=question, response_format={"type": "json_object"}, temperature=0, max_tokens=400, extra_body=PLAIN
).choices[0]
if anything.finish_reason == "stop":
    check("a JSON object", isinstance(json.loads(anything.message.content), dict), True)

# reasoning
for case in of("think", 3):
    reasoning, answer = case["greedy_text"].split("</think>")
    got = create(model=model, messages=case["messages"], temperature=0, max_tokens=256, extra_body=THINKING)
    message = got.choices[0].message
    check(case["id"], (message.reasoning_content, message.content), (reasoning, answer))
    check("reasoning tokens", got.usage.completion_tokens_details.reasoning_tokens > 0, True)
    parts = {"reasoning_content": "", "content": ""}
    for chunk in create(model=model, messages=case["messages"], temperature=0, max_tokens=256, stream=True, extra_body=THINKING):
        for choice in chunk.choices:
            for part in parts:
                parts[part] += getattr(choice.delta, part, None) or ""
    check(case["id"] + " streamed", parts, {"reasoning_content": reasoning, "content": answer})

# logprobs
case = facts(cases, 1)[0]
asked = dict(model=model, messages=case["messages"], temperature=0, max_tokens=128, extra_body=PLAIN)
answer = create(**asked, logprobs=True, top_logprobs=3).choices[0]
tokens = answer.logprobs.content
check("a logprob for each token", len(tokens), len(case["greedy_ids"]))
check("their bytes", b"".join(bytes(t.bytes or []) for t in tokens[:-1]).decode(), case["greedy_text"])
for token in tokens:
    check("greedy is the most likely", token.top_logprobs[0].token, token.token)
    check("three, descending", [t.logprob for t in token.top_logprobs], sorted((t.logprob for t in token.top_logprobs), reverse=True))
    check("at most one", sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001, True)

# echo with logprobs: scoring
scored = client.completions.create(model=model, prompt=case["prompt_ids"], echo=True, logprobs=1, max_tokens=0, temperature=0)
check("one for each token of the prompt", len(scored.choices[0].logprobs.token_logprobs), len(case["prompt_ids"]))
check("none for the first", scored.choices[0].logprobs.token_logprobs[0], None)

# n: independent, each reproducible on its own
many = create(model=model, messages=question, n=3, temperature=1, seed=11, max_tokens=24, extra_body=PLAIN)
check("three answers", sorted(choice.index for choice in many.choices), [0, 1, 2])
for choice in many.choices:
    alone = create(model=model, messages=question, temperature=1, seed=11 + choice.index, max_tokens=24, extra_body=PLAIN)
    check(f"answer {choice.index} alone", alone.choices[0].message.content, choice.message.content)
streamed = {0: "", 1: ""}
for chunk in create(model=model, messages=question, n=2, temperature=1, seed=11, max_tokens=24, stream=True, extra_body=PLAIN):
    for choice in chunk.choices:
        streamed[choice.index] += choice.delta.content or ""
check("streamed", streamed, {c.index: c.message.content for c in many.choices if c.index < 2})

# a prompt that was seen: found in the cache, the same answer
long = max((c for c in cases if not c["thinking"] and "tools" not in c and c["skill"].startswith("doc")), key=lambda c: len(c["prompt_ids"]))
asked = dict(model=model, messages=long["messages"], temperature=0, max_tokens=128, extra_body=PLAIN)
for _ in range(4):  # as many as it takes for one worker to see it twice
    answer = create(**asked)
    check(long["id"], answer.choices[0].message.content, long["greedy_text"])
check("cached tokens", answer.usage.prompt_tokens_details.cached_tokens > 0, True)

# every field out of range is named
for field, value in {
    "temperature": 3, "top_p": 0, "presence_penalty": 3, "frequency_penalty": -3, "n": 0, "top_logprobs": 50,
    "logit_bias": {"999999": 1}, "seed": 0.5, "max_tokens": -1, "stop": [""],
}.items():
    try:
        body = {field: value, **({"logprobs": True} if field == "top_logprobs" else {})}
        create(model=model, messages=question, extra_body={**PLAIN, **body})
        raise SystemExit(f"{field}={value} was taken")
    except openai.BadRequestError as error:
        check(f"{field} is named", (error.param or "").startswith(field), True)
print("openai: tools, schemas, reasoning, logprobs, n, cache, ranges: as expected")
