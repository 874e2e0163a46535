"""`tritonclient` over gRPC as it comes: liveness, readiness, metadata, inference with a text tensor."""
import numpy
import tritonclient.grpc as triton
from eval_cases import arguments, check, facts

address, model, cases = arguments()
client = triton.InferenceServerClient(address)
check("live", client.is_server_live(), True)
check("ready", client.is_server_ready(), True)
check("model ready", client.is_model_ready(model), True)
check("unknown model ready", client.is_model_ready("no-such-model"), False)
metadata = client.get_model_metadata(model)
check("inputs", "text_input" in [tensor.name for tensor in metadata.inputs], True)

for case in facts(cases, 4):
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(numpy.array([case["prompt"].encode()], dtype=numpy.object_))
    tokens = triton.InferInput("max_tokens", [1], "INT32")
    tokens.set_data_from_numpy(numpy.array([128], dtype=numpy.int32))
    temperature = triton.InferInput("temperature", [1], "FP32")
    temperature.set_data_from_numpy(numpy.array([0], dtype=numpy.float32))
    result = client.infer(model, [text, tokens, temperature])
    check(case["id"], result.as_numpy("text_output")[0].decode(), case["greedy_text"])
print("tritonclient: live, ready, metadata, inference: as expected")
