"""`tritonclient` over gRPC as it comes: streaming inference, text in and token ids in, several requests on one stream."""
import queue

import numpy
import tritonclient.grpc as triton
from eval_cases import arguments, check, facts

address, model, cases = arguments()
asked = facts(cases, 4)

# A worker that is lost ends an answer that has begun: this protocol has no word for tokens that came from elsewhere.  Who asks
# asks again; what losses cost otherwise is tested elsewhere.
ATTEMPTS = 3


def tensor(name, kind, array):
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


def ask(client, number, case):
    if number % 2:
        prompt = tensor("input_ids", "INT64", numpy.array(case["prompt_ids"], dtype=numpy.int64))
    else:
        prompt = tensor("text_input", "BYTES", numpy.array([case["prompt"].encode()], dtype=numpy.object_))
    limit = tensor("max_tokens", "INT32", numpy.array([128], dtype=numpy.int32))
    temperature = tensor("temperature", "FP32", numpy.array([0], dtype=numpy.float32))
    client.async_stream_infer(
        model, [prompt, limit, temperature], request_id=case["id"], enable_empty_final_response=True
    )


def stream():
    """Texts, ids and numbers of pieces by request, or what went wrong."""
    answers = queue.Queue()
    client = triton.InferenceServerClient(address)
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    texts, ids, pieces, ended = {}, {}, {}, set()
    try:
        for number, case in enumerate(asked):
            ask(client, number, case)
        while len(ended) < len(asked):
            result, error = answers.get(timeout=60)
            if error is not None:
                raise error
            response = result.get_response()
            name = response.id
            if result.as_numpy("text_output") is not None:
                texts[name] = texts.get(name, "") + result.as_numpy("text_output")[0].decode()
                ids.setdefault(name, []).extend(result.as_numpy("output_ids").tolist())
                pieces[name] = pieces.get(name, 0) + 1
            if response.parameters["triton_final_response"].bool_param:
                ended.add(name)
    except BaseException as problem:
        # a stream that stays open keeps the interpreter from its end
        client.stop_stream(cancel_requests=True)
        print(f"stream: {type(problem).__name__}: {problem}; {len(ended)} of {len(asked)} had ended, pieces: {pieces}", flush=True)
        raise
    client.stop_stream()
    return texts, ids, pieces


for attempt in range(ATTEMPTS):
    try:
        texts, ids, pieces = stream()
        break
    except triton.InferenceServerException:
        if attempt + 1 == ATTEMPTS:
            raise
for case in asked:
    check(case["id"], (texts[case["id"]], ids[case["id"]]), (case["greedy_text"], case["greedy_ids"]))
check("it streams", any(count > 1 for count in pieces.values()), True)
print("tritonclient: streaming inference, text and ids, several on a stream: as expected")
