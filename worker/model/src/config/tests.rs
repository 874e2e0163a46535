use serde_json::json;

use super::*;

fn published() -> Value {
    let text = include_str!("../../../../tests/fixtures/models/nano/bf16/config.json");
    serde_json::from_str(text).unwrap()
}

fn with(key: &str, value: Value) -> Result<Config, ConfigError> {
    let mut config = published();
    config[key] = value;
    Config::parse(&config.to_string())
}

fn message(key: &str, value: Value) -> String {
    with(key, value).unwrap_err().to_string()
}

#[test]
fn published_keys_give_the_layer_kinds() {
    let config = Config::parse(&published().to_string()).unwrap();
    use LayerKind::{Compressed, Indexed, Sliding};
    assert_eq!(config.layers, [Sliding, Sliding, Indexed, Compressed { ratio: 128 }, Indexed]);
    assert_eq!(config.routers[0], RouterKind::Hash);
    assert!(config.routers[1..].iter().all(|&kind| kind == RouterKind::Learned));
    assert_eq!(config.yarn.unwrap().original_positions, 1024);
}

#[test]
fn every_required_key_is_named_when_it_is_missing() {
    for key in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "qk_rope_head_dim",
        "q_lora_rank",
        "o_groups",
        "o_lora_rank",
        "sliding_window",
        "compress_ratios",
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "routed_scaling_factor",
        "swiglu_limit",
        "hc_mult",
        "hc_sinkhorn_iters",
        "hc_eps",
        "rms_norm_eps",
        "index_n_heads",
        "index_head_dim",
        "index_topk",
        "rope_theta",
        "compress_rope_theta",
        "max_position_embeddings",
    ] {
        let mut config = published();
        config.as_object_mut().unwrap().remove(key);
        let error = Config::parse(&config.to_string()).unwrap_err();
        assert_eq!(error, ConfigError::new(key, "missing"));
    }
}

#[test]
fn wrong_types_and_values_name_the_key() {
    assert_eq!(
        message("hidden_size", json!("128")),
        "config.json: hidden_size: expected a positive integer, found \"128\""
    );
    assert_eq!(
        message("head_dim", json!(-80)),
        "config.json: head_dim: expected a positive integer, found -80"
    );
    assert!(
        message("rope_theta", json!(0)).starts_with("config.json: rope_theta: expected a positive number")
    );
    assert!(message("rope_scaling", json!(3)).starts_with("config.json: rope_scaling: expected an object"));
    assert!(message("rope_scaling", json!({"type": "linear"})).contains("rope_scaling.type: only \"yarn\""));
    assert!(message("model_type", json!("deepseek_v41")).contains("only \"deepseek_v4\" is supported"));
    assert!(Config::parse("{").unwrap_err().to_string().contains("not JSON"));
}

#[test]
fn unknown_layer_kinds_are_refused_by_place() {
    assert!(
        message("compress_ratios", json!([0, 0, -3, 0, 0]))
            .contains("compress_ratios[2]: unknown layer kind -3")
    );
    assert!(
        message("compress_ratios", json!([0, 1, 4, 0, 0]))
            .contains("compress_ratios[1]: unknown layer kind 1")
    );
    assert!(
        message("compress_ratios", json!([0])).contains("compress_ratios: 1 entries for num_hidden_layers 5")
    );
    let mut types = vec!["sliding_attention"; 5];
    types[3] = "linear_attention";
    let error = message("layer_types", json!(types));
    assert!(error.contains("layer_types[3]: unknown layer kind \"linear_attention\""), "{error}");
    let error = message("mlp_layer_types", json!(["hash_moe", "moe", "dense", "moe", "moe"]));
    assert!(error.contains("mlp_layer_types[2]: unknown layer kind \"dense\""), "{error}");
}

#[test]
fn two_descriptions_of_the_layers_must_agree() {
    let error = message("layer_types", json!(vec!["sliding_attention"; 5]));
    assert_eq!(error, "config.json: layer_types[2]: a ratio of 0, but compress_ratios[2] is 4");
    let error = message("mlp_layer_types", json!(vec!["moe"; 5]));
    assert_eq!(error, "config.json: mlp_layer_types: does not agree with num_hash_layers");
}

#[test]
fn sizes_that_do_not_fit_together_are_refused() {
    assert!(
        message("num_hash_layers", json!(6)).contains("num_hash_layers: 6 is more than num_hidden_layers 5")
    );
    assert!(message("num_experts_per_tok", json!(17)).contains("more than n_routed_experts 16"));
    assert!(message("hc_mult", json!(17)).contains("hc_mult: 17 is more than the 16 supported"));
    assert!(message("o_groups", json!(3)).contains("o_groups: 3 does not divide num_attention_heads 4"));
    assert!(message("qk_rope_head_dim", json!(15)).contains("must be even"));
    assert!(message("index_head_dim", json!(8)).contains("less than qk_rope_head_dim"));
    assert!(message("eos_token_id", json!(2048)).contains("outside the vocabulary"));
}

#[test]
fn yarn_is_off_without_an_original_context() {
    let off = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 0});
    assert_eq!(with("rope_scaling", off).unwrap().yarn, None);
    assert_eq!(with("rope_scaling", Value::Null).unwrap().yarn, None);
}

#[test]
fn layer_types_alone_are_enough() {
    let text = include_str!("../../../../tests/fixtures/golden/public_hybrid/config.json");
    let mut config: Value = serde_json::from_str(text).unwrap();
    let expected = Config::parse(text).unwrap();
    for key in ["compress_ratios", "num_hash_layers"] {
        config.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(Config::parse(&config.to_string()).unwrap(), expected);
    assert_eq!(expected.layers[1], LayerKind::Compressed { ratio: 8 });
}

#[test]
fn the_draft_stage_is_one_more_layer() {
    let trunk = Config::parse(&published().to_string()).unwrap();
    let mut config = trunk.clone();
    config.add_draft_stage(2).unwrap();
    assert_eq!((config.depth(), config.layers.len(), config.draft_tokens), (5, 6, 2));
    assert_eq!((config.layers[5], config.routers[5]), (LayerKind::Sliding, RouterKind::Learned));
    assert_eq!((&config.layers[..5], trunk.depth()), (&trunk.layers[..], 5));

    let mut other = with("compress_ratios", json!([0, 0, 4, 128, 4, 128])).unwrap();
    let refused = other.add_draft_stage(1).unwrap_err();
    assert_eq!(refused.to_string(), "config.json: compress_ratios[5]: an MTP stage has ratio 0, found 128");
    let mut silent = with("compress_ratios", json!([0, 0, 4, 128, 4])).unwrap();
    silent.add_draft_stage(1).unwrap();
}
