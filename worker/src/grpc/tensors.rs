//! Tensors of the KServe open inference protocol: typed or raw in, the same way out. Pure.

use belay_proto::kserve::infer_parameter::ParameterChoice;
use belay_proto::kserve::model_infer_request::InferInputTensor;
use belay_proto::kserve::model_infer_response::InferOutputTensor;
use belay_proto::kserve::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};

use crate::ask::Prompt;
use crate::grpc::infer_fields::{Fields, Value, integers, names, one_text};

/// Outputs that the model gives: name and datatype.
pub const OUTPUTS: [(&str, &str); 5] = [
    ("text_output", "BYTES"),
    ("output_ids", "INT64"),
    ("finish_reason", "BYTES"),
    ("output_logprobs", "FP32"),
    ("input_logprobs", "FP32"),
];

/// What an infer request asks for.
pub struct Infer {
    /// Text or ids.
    pub prompt: Prompt,
    /// Everything else.
    pub fields: Fields,
    /// Names of the outputs wanted; all if empty.
    pub outputs: Vec<String>,
    /// Whether the client speaks raw tensors and so wants them back.
    pub is_raw: bool,
}

/// Reads a request.
///
/// # Errors
/// A message that names the tensor or parameter.
pub fn decode(request: &ModelInferRequest) -> Result<Infer, String> {
    let is_raw = !request.raw_input_contents.is_empty();
    if is_raw && request.raw_input_contents.len() != request.inputs.len() {
        return Err(format!(
            "raw_input_contents: {} tensors for {} inputs",
            request.raw_input_contents.len(),
            request.inputs.len()
        ));
    }
    let mut prompt = None;
    let mut fields = Fields::default();
    for (name, parameter) in &request.parameters {
        let value = parameter_value(name, parameter)?;
        fields.set(name, &[value])?;
    }
    for (index, tensor) in request.inputs.iter().enumerate() {
        let values = match request.raw_input_contents.get(index) {
            Some(raw) => raw_values(tensor, raw)?,
            None => typed_values(tensor)?,
        };
        check_shape(tensor, values.len())?;
        let read = match tensor.name.as_str() {
            "text_input" => Prompt::Text(one_text("text_input", &values)?),
            "input_ids" => Prompt::Ids(integers("input_ids", &values)?),
            name => {
                fields.set(name, &values)?;
                continue;
            }
        };
        if prompt.replace(read).is_some() {
            return Err(format!("{}: a request has one of text_input and input_ids, once", tensor.name));
        }
    }
    let outputs: Vec<String> = request.outputs.iter().map(|output| output.name.clone()).collect();
    if let Some(unknown) = outputs.iter().find(|name| OUTPUTS.iter().all(|(known, _)| known != name)) {
        return Err(format!("outputs: {unknown:?} is unknown; there are {}", names(&OUTPUTS)));
    }
    let prompt = prompt.ok_or("text_input: missing (BYTES, one element)")?;
    Ok(Infer { prompt, fields, outputs, is_raw })
}

/// What came out of a request, or a part of it.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Text of the prompt, if that is to be repeated, and of the tokens.
    pub text: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// One for each id, if asked for.
    pub logprobs: Vec<f32>,
    /// One for each token of the prompt, if asked for; 0 for the first, which has none.
    pub prompt_logprobs: Vec<f32>,
    /// `stop` or `length`; empty before the end.
    pub finish_reason: &'static str,
}

/// Adds the outputs that were asked for to a response.
pub fn encode(response: &mut ModelInferResponse, infer: &Infer, answer: &Answer) {
    for (name, datatype) in OUTPUTS {
        if !infer.outputs.is_empty() && infer.outputs.iter().all(|wanted| wanted != name) {
            continue;
        }
        let options = &infer.fields.options;
        let is_asked_for = match name {
            "output_logprobs" => options.logprobs.is_some(),
            "input_logprobs" => options.prompt_logprobs.is_some(),
            _ => true,
        };
        if !is_asked_for {
            continue;
        }
        let mut contents = InferTensorContents::default();
        match name {
            "input_logprobs" => contents.fp32_contents.clone_from(&answer.prompt_logprobs),
            "output_logprobs" => contents.fp32_contents.clone_from(&answer.logprobs),
            "text_output" => contents.bytes_contents.push(answer.text.clone().into_bytes()),
            "finish_reason" => contents.bytes_contents.push(answer.finish_reason.into()),
            _ => contents.int64_contents.extend(answer.ids.iter().map(|id| i64::from(*id))),
        }
        let elements =
            contents.bytes_contents.len() + contents.int64_contents.len() + contents.fp32_contents.len();
        let raw = raw_contents(&contents);
        response.outputs.push(InferOutputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: vec![elements as i64],
            contents: (!infer.is_raw).then_some(contents),
            ..InferOutputTensor::default()
        });
        if infer.is_raw {
            response.raw_output_contents.push(raw);
        }
    }
}

/// Little-endian elements; BYTES elements behind their length as `u32`.
fn raw_contents(contents: &InferTensorContents) -> Vec<u8> {
    let mut raw = Vec::new();
    for element in &contents.bytes_contents {
        raw.extend_from_slice(&(element.len() as u32).to_le_bytes());
        raw.extend_from_slice(element);
    }
    for element in &contents.int64_contents {
        raw.extend_from_slice(&element.to_le_bytes());
    }
    for element in &contents.fp32_contents {
        raw.extend_from_slice(&element.to_le_bytes());
    }
    raw
}

fn parameter_value(name: &str, parameter: &InferParameter) -> Result<Value, String> {
    Ok(match &parameter.parameter_choice {
        Some(ParameterChoice::BoolParam(flag)) => Value::Bool(*flag),
        Some(ParameterChoice::Int64Param(number)) => Value::Integer(i128::from(*number)),
        Some(ParameterChoice::Uint64Param(number)) => Value::Integer(i128::from(*number)),
        Some(ParameterChoice::DoubleParam(number)) => Value::Float(*number),
        Some(ParameterChoice::StringParam(text)) => Value::Bytes(text.clone().into_bytes()),
        None => return Err(format!("{name}: the parameter has no value")),
    })
}

fn check_shape(tensor: &InferInputTensor, elements: usize) -> Result<(), String> {
    let product = tensor.shape.iter().try_fold(1i64, |product, dim| product.checked_mul(*dim));
    if product == Some(elements as i64) {
        return Ok(());
    }
    Err(format!("{}: shape {:?} does not hold the {elements} elements sent", tensor.name, tensor.shape))
}

fn typed_values(tensor: &InferInputTensor) -> Result<Vec<Value>, String> {
    let Some(contents) = &tensor.contents else {
        return Err(format!("{}: neither contents nor raw_input_contents", tensor.name));
    };
    let integers = |values: &mut dyn Iterator<Item = i128>| values.map(Value::Integer).collect();
    Ok(match tensor.datatype.as_str() {
        "BYTES" => contents.bytes_contents.iter().cloned().map(Value::Bytes).collect(),
        "BOOL" => contents.bool_contents.iter().copied().map(Value::Bool).collect(),
        "INT8" | "INT16" | "INT32" => integers(&mut contents.int_contents.iter().map(|n| i128::from(*n))),
        "INT64" => integers(&mut contents.int64_contents.iter().map(|n| i128::from(*n))),
        "UINT8" | "UINT16" | "UINT32" => integers(&mut contents.uint_contents.iter().map(|n| i128::from(*n))),
        "UINT64" => integers(&mut contents.uint64_contents.iter().map(|n| i128::from(*n))),
        "FP32" => contents.fp32_contents.iter().map(|n| Value::Float(f64::from(*n))).collect(),
        "FP64" => contents.fp64_contents.iter().copied().map(Value::Float).collect(),
        other => return Err(unknown_type(tensor, other)),
    })
}

fn unknown_type(tensor: &InferInputTensor, datatype: &str) -> String {
    format!("{}: datatype {datatype:?} is not taken", tensor.name)
}

fn raw_values(tensor: &InferInputTensor, raw: &[u8]) -> Result<Vec<Value>, String> {
    macro_rules! numbers {
        ($number:ty, $value:expr) => {{
            let (chunks, rest) = raw.as_chunks::<{ size_of::<$number>() }>();
            if !rest.is_empty() {
                return Err(format!("{}: {} bytes are no whole {}", tensor.name, raw.len(), tensor.datatype));
            }
            chunks.iter().map(|chunk| $value(<$number>::from_le_bytes(*chunk).into())).collect()
        }};
    }
    Ok(match tensor.datatype.as_str() {
        "BYTES" => return raw_bytes(tensor, raw),
        "BOOL" => raw.iter().map(|byte| Value::Bool(*byte != 0)).collect(),
        "INT8" => numbers!(i8, Value::Integer),
        "INT16" => numbers!(i16, Value::Integer),
        "INT32" => numbers!(i32, Value::Integer),
        "INT64" => numbers!(i64, Value::Integer),
        "UINT8" => numbers!(u8, Value::Integer),
        "UINT16" => numbers!(u16, Value::Integer),
        "UINT32" => numbers!(u32, Value::Integer),
        "UINT64" => numbers!(u64, Value::Integer),
        "FP32" => numbers!(f32, Value::Float),
        "FP64" => numbers!(f64, Value::Float),
        other => return Err(unknown_type(tensor, other)),
    })
}

fn raw_bytes(tensor: &InferInputTensor, mut raw: &[u8]) -> Result<Vec<Value>, String> {
    let mut values = Vec::new();
    while !raw.is_empty() {
        let element = raw
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        let (element, rest) =
            element.ok_or_else(|| format!("{}: raw BYTES end in the middle of an element", tensor.name))?;
        values.push(Value::Bytes(element.to_vec()));
        raw = rest;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::infer_fields::INPUTS;
    use proptest::prelude::*;

    fn tensor(
        name: &str,
        datatype: &str,
        shape: &[i64],
        contents: Option<InferTensorContents>,
    ) -> InferInputTensor {
        InferInputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        }
    }

    fn typed_text(text: &[u8]) -> InferInputTensor {
        let contents = InferTensorContents { bytes_contents: vec![text.to_vec()], ..Default::default() };
        tensor("text_input", "BYTES", &[1, 1], Some(contents))
    }

    fn raw_text(text: &str) -> Vec<u8> {
        let contents = InferTensorContents { bytes_contents: vec![text.into()], ..Default::default() };
        raw_contents(&contents)
    }

    fn refused(request: &ModelInferRequest) -> String {
        decode(request).map(|_| ()).unwrap_err()
    }

    #[test]
    fn typed_and_raw_tensors_and_parameters_say_the_same() {
        let max = InferTensorContents { int_contents: vec![9], ..Default::default() };
        let heat = InferTensorContents { fp32_contents: vec![0.5], ..Default::default() };
        let typed = ModelInferRequest {
            inputs: vec![
                typed_text(b"hello"),
                tensor("max_tokens", "INT32", &[1], Some(max)),
                tensor("temperature", "FP32", &[1], Some(heat)),
            ],
            ..Default::default()
        };
        let raw = ModelInferRequest {
            inputs: vec![
                tensor("text_input", "BYTES", &[1], None),
                tensor("max_tokens", "INT64", &[1, 1], None),
                tensor("temperature", "FP32", &[1], None),
            ],
            raw_input_contents: vec![
                raw_text("hello"),
                9i64.to_le_bytes().to_vec(),
                0.5f32.to_le_bytes().to_vec(),
            ],
            ..Default::default()
        };
        let by_parameter = ModelInferRequest {
            inputs: vec![typed_text(b"hello")],
            parameters: [
                ("max_tokens", ParameterChoice::Int64Param(9)),
                ("temperature", ParameterChoice::DoubleParam(0.5)),
            ]
            .map(|(name, choice)| (name.to_owned(), InferParameter { parameter_choice: Some(choice) }))
            .into(),
            ..Default::default()
        };
        for (request, is_raw) in [(typed, false), (raw, true), (by_parameter, false)] {
            let infer = decode(&request).unwrap();
            assert!(matches!(&infer.prompt, Prompt::Text(text) if text == "hello"));
            assert_eq!(
                (infer.fields.sampling.max_tokens, infer.fields.sampling.temperature),
                (Some(9), Some(0.5))
            );
            assert_eq!(infer.is_raw, is_raw);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |inputs| ModelInferRequest { inputs, ..Default::default() };
        assert!(refused(&with(vec![])).starts_with("text_input: missing"));
        assert!(refused(&with(vec![typed_text(b"a"), typed_text(b"b")])).contains("once"));
        assert!(refused(&with(vec![typed_text(&[b'a', 0xff])])).contains("not UTF-8 after byte 1"));
        let mut shape = typed_text(b"a");
        shape.shape = vec![2];
        assert!(refused(&with(vec![shape])).contains("shape [2]"));
        let mut unknown = typed_text(b"a");
        unknown.name = "prompt".into();
        assert!(refused(&with(vec![unknown])).contains("there are text_input"));
        let mut raw = with(vec![tensor("text_input", "BYTES", &[1], None)]);
        raw.raw_input_contents = vec![vec![9, 0, 0, 0, b'x']];
        assert!(refused(&raw).contains("middle of an element"));
        let negative = InferTensorContents { int_contents: vec![-1], ..Default::default() };
        let inputs = vec![typed_text(b"a"), tensor("max_tokens", "INT32", &[1], Some(negative))];
        assert!(refused(&with(inputs)).contains("max_tokens: -1 is out of range"));
    }

    #[test]
    fn only_the_outputs_asked_for_come_back_in_the_form_of_the_request() {
        let answer =
            Answer { text: "hi".into(), ids: vec![5, 1], finish_reason: "stop", ..Answer::default() };
        let infer = |outputs: &[&str], is_raw| Infer {
            prompt: Prompt::Ids(vec![]),
            fields: Fields::default(),
            outputs: outputs.iter().map(|name| (*name).to_owned()).collect(),
            is_raw,
        };
        let mut typed = ModelInferResponse::default();
        encode(&mut typed, &infer(&[], false), &answer);
        let shapes: Vec<_> = typed.outputs.iter().map(|out| (out.name.as_str(), out.shape.clone())).collect();
        assert_eq!(shapes, [("text_output", vec![1]), ("output_ids", vec![2]), ("finish_reason", vec![1])]);
        assert_eq!(typed.outputs[1].contents.as_ref().unwrap().int64_contents, [5, 1]);
        let mut raw = ModelInferResponse::default();
        encode(&mut raw, &infer(&["text_output"], true), &answer);
        assert_eq!((raw.outputs.len(), raw.outputs[0].contents.is_none()), (1, true));
        assert_eq!(raw.raw_output_contents, [[2, 0, 0, 0, b'h', b'i'].to_vec()]);
    }

    proptest! {
        #[test]
        fn any_raw_bytes_are_read_or_refused(
            raw in prop::collection::vec(any::<u8>(), 0..64), kind in 0usize..INPUTS.len(), shape in -2i64..70,
        ) {
            let (name, datatype) = INPUTS[kind];
            let request = ModelInferRequest {
                inputs: vec![tensor(name, datatype, &[shape], None)],
                raw_input_contents: vec![raw],
                ..Default::default()
            };
            let _ = decode(&request);
        }
    }
}
