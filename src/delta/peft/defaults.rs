//! What PEFT takes for fields that are null: its tables by the base's `model_type` (`peft/utils/constants.py`), for the
//! families that are served. A model that is in none has no default, and PEFT refuses null for it.

/// `target_modules` of LoRA, and of the methods that PEFT gives the same table.
pub(crate) fn lora_targets(model_type: &str) -> Option<&'static [&'static str]> {
    match model_type {
        "llama" | "mistral" | "mixtral" | "qwen2" | "qwen3" | "gemma2" | "gemma3_text" => Some(&["q_proj", "v_proj"]),
        _ => None,
    }
}

/// `target_modules` of AdaLoRA and of VB-LoRA.
pub(crate) fn adalora_targets(model_type: &str) -> Option<&'static [&'static str]> {
    match model_type {
        "mistral" | "mixtral" => None,
        _ => lora_targets(model_type),
    }
}

/// `target_modules` of BEFT.
pub(crate) fn beft_targets(model_type: &str) -> Option<&'static [&'static str]> {
    lora_targets(model_type).map(|_| ["v_proj"].as_slice())
}

/// `target_modules` of IA3.
pub(crate) fn ia3_targets(model_type: &str) -> Option<&'static [&'static str]> {
    match model_type {
        "llama" | "mistral" => Some(&["k_proj", "v_proj", "down_proj"]),
        "mixtral" => Some(&["k_proj", "v_proj", "w2"]),
        "qwen2" | "qwen3" | "gemma2" | "gemma3_text" => Some(&["q_proj", "v_proj", "down_proj"]),
        _ => None,
    }
}

/// `feedforward_modules` of IA3.
pub(crate) fn ia3_feedforward(model_type: &str) -> Option<&'static [&'static str]> {
    match model_type {
        "mixtral" => Some(&["w2"]),
        _ => ia3_targets(model_type).map(|_| ["down_proj"].as_slice()),
    }
}

/// `target_modules` of LN tuning.
pub(crate) fn ln_targets(model_type: &str) -> Option<&'static [&'static str]> {
    match model_type {
        "llama" | "mistral" => Some(&["input_layernorm", "post_attention_layernorm", "norm"]),
        "qwen2" | "qwen3" => Some(&["post_attention_layernorm"]),
        "gemma2" | "gemma3_text" => Some(&[
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "norm",
        ]),
        _ => None,
    }
}
