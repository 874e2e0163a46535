"""The `openai` package as it comes: chat and completions, stream and not, models, errors."""
import openai
from eval_cases import arguments, check, facts

address, model, cases = arguments()
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="unused")

check("models", [m.id for m in client.models.list()], [model])
check("model", client.models.retrieve(model).id, model)

for case in facts(cases, 4):
    answer = client.chat.completions.create(model=model, messages=case["messages"], temperature=0, max_tokens=128)
    check(case["id"], answer.choices[0].message.content, case["greedy_text"])
    check("finish reason", answer.choices[0].finish_reason, "stop")
    check("prompt tokens", answer.usage.prompt_tokens, len(case["prompt_ids"]))
    check("completion tokens", answer.usage.completion_tokens, len(case["greedy_ids"]))

for case in facts(cases, 4):
    text, finish, usage = "", None, None
    with client.chat.completions.create(
        model=model, messages=case["messages"], temperature=0, max_tokens=128,
        stream=True, stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    check(case["id"] + " streamed", text, case["greedy_text"])
    check("finish reason streamed", finish, "stop")
    check("usage streamed", usage.total_tokens, len(case["prompt_ids"]) + len(case["greedy_ids"]))

case = facts(cases, 1)[0]
answer = client.completions.create(model=model, prompt=case["prompt"], temperature=0, max_tokens=128)
check("completion", answer.choices[0].text, case["greedy_text"])
text = "".join(
    chunk.choices[0].text
    for chunk in client.completions.create(model=model, prompt=case["prompt_ids"], temperature=0, max_tokens=128, stream=True)
    if chunk.choices
)
check("completion from ids, streamed", text, case["greedy_text"])

cut = client.chat.completions.create(model=model, messages=case["messages"], temperature=0, max_tokens=3)
check("cut short", cut.choices[0].finish_reason, "length")
stop = client.chat.completions.create(model=model, messages=case["messages"], temperature=0, stop=[" one"])
check("stop string", stop.choices[0].message.content, case["greedy_text"].split(" one")[0])

sampled = [
    client.chat.completions.create(model=model, messages=case["messages"], temperature=1.0, top_p=0.95, seed=7, max_tokens=32)
    for _ in range(2)
]
check("the same seed", sampled[0].choices[0].message.content, sampled[1].choices[0].message.content)

try:
    client.chat.completions.create(model="no-such-model", messages=case["messages"])
    raise SystemExit("an unknown model was answered")
except openai.NotFoundError as error:
    check("unknown model", error.code, "model_not_found")
try:
    client.chat.completions.create(model=model, messages=[])
    raise SystemExit("an empty conversation was answered")
except openai.BadRequestError as error:
    check("empty conversation", error.param, "messages")
print("openai: chat, completions, stream and not, models, seeds, errors: as expected")
