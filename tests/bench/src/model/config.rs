//! `config.json` with the published keys.

use serde_json::{Map, Value, json};

use super::preset::{Preset, STREAMS, VOCABULARY, WINDOW};

/// The configuration of a model.
pub fn config(preset: &Preset) -> Value {
    let parts = [family(), sizes(preset), experts(preset), attention(preset), constants()];
    let fields = parts.into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(fields.flatten().collect::<Map<_, _>>())
}

fn family() -> Value {
    json!({
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16",
        "expert_dtype": "fp4",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128]
        }
    })
}

fn sizes(preset: &Preset) -> Value {
    let mut ratios = preset.ratios.to_vec();
    ratios.push(0); // the MTP stage
    json!({
        "vocab_size": VOCABULARY,
        "hidden_size": preset.hidden_size,
        "num_hidden_layers": preset.ratios.len(),
        "num_nextn_predict_layers": 1,
        "compress_ratios": ratios,
        "hc_mult": STREAMS,
        "max_position_embeddings": preset.max_positions,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": preset.max_positions / 4,
            "beta_fast": 32,
            "beta_slow": 1
        }
    })
}

fn experts(preset: &Preset) -> Value {
    json!({
        "moe_intermediate_size": preset.expert_width,
        "num_hash_layers": preset.hash_layers,
        "n_routed_experts": preset.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": preset.experts_per_token,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": true,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hidden_act": "silu"
    })
}

fn attention(preset: &Preset) -> Value {
    json!({
        "num_attention_heads": preset.heads,
        "num_key_value_heads": 1,
        "head_dim": preset.head_dim,
        "qk_rope_head_dim": preset.rope_dim,
        "q_lora_rank": preset.q_lora_rank,
        "o_groups": preset.o_groups,
        "o_lora_rank": preset.o_lora_rank,
        "sliding_window": WINDOW,
        "index_n_heads": preset.index_heads,
        "index_head_dim": preset.index_dim,
        "index_topk": preset.index_top_k,
        "attention_bias": false,
        "attention_dropout": 0.0
    })
}

fn constants() -> Value {
    json!({
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "compress_rope_theta": 160_000,
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.02,
        "use_cache": true
    })
}
