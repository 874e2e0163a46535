"""gRPC reflection: what a tool such as grpcurl sees, and a call built from nothing but that."""
import grpc
from eval_cases import arguments, check, facts
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, model, cases = arguments()
channel = grpc.insecure_channel(address)
database = ProtoReflectionDescriptorDatabase(channel)
services = set(database.get_services())
for service in ("belay.inference.v1.Inference", "inference.GRPCInferenceService", "grpc.health.v1.Health"):
    check(f"{service} is listed", service in services, True)
check("admin is not reachable from outside", "belay.admin.v1.Admin" in services, False)

pool = DescriptorPool(database)
method = pool.FindServiceByName("belay.inference.v1.Inference").FindMethodByName("Generate")
request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
call = channel.unary_stream(
    f"/{method.containing_service.full_name}/{method.name}", request.SerializeToString, response.FromString
)
case = facts(cases, 1)[0]
pieces = call(request(model=model, text=case["prompt"], sampling={"temperature": 0, "max_tokens": 128}))
check("Generate by reflection", "".join(piece.text for piece in pieces), case["greedy_text"])
print("reflection: services listed, Generate called from its descriptors: as expected")
