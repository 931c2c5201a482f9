//! The fields of `quantization_config`, method by method: each is read, refused, or known to change no weight.

use serde_json::{Map, Value};

use super::{Quantization, FIELD};
use crate::pretrained::config_json::ConfigJson;
use crate::{Error, Result};

const SUPPORTED: &str = "gptq, awq, bitsandbytes, fp8 and mxfp4 are supported, and GGUF files";

/// Which modules are quantised, which the checkpoint's tensors say.
const MODULES: &[&str] = &["modules_to_not_convert", "modules_to_convert", "modules_in_block_to_quantize", "lm_head"];

/// How GPTQ found the weights, and what computes with them.
const GPTQ: &[&str] = &[
    "act_group_aware",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "desc_act", // `g_idx` says which group an input is of
    "disable_exllama",
    "exllama_config",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "mse",
    "parallel_packing",
    "quantizer",
    "static_groups",
    "sym", // the zeros are stored
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
];

const AWQ: &[&str] = &["backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse"];

/// How bitsandbytes computes, but for the kind of four bits, which each weight says.
const BITS_AND_BYTES: &[&str] = &[
    "_load_in_4bit",
    "_load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
    "load_in_4bit",
    "load_in_8bit",
];

/// The method of the object `own`, which is the field's `value`.
pub(super) fn read(own: &ConfigJson, json: &ConfigJson, value: &Value) -> Result<Quantization> {
    own.ignore(MODULES);
    let method: Option<String> = own.get("quant_method")?;
    // The first files of bitsandbytes have no method.
    let first = || own.has_any(&["load_in_8bit", "load_in_4bit"]).then(|| "bitsandbytes".to_string());
    match method.or_else(first).as_deref() {
        Some("gptq") => gptq(own),
        Some("awq") => awq(own),
        Some("bitsandbytes") => {
            own.ignore(BITS_AND_BYTES);
            Ok(Quantization::BitsAndBytes)
        }
        Some("fp8") => fp8(own),
        Some("mxfp4") => {
            own.ignore(&["dequantize"]);
            Ok(Quantization::Mxfp4)
        }
        Some(other) => Err(json.refuse(FIELD, value, &format!("the method {other} is not supported: {SUPPORTED}"))),
        None => Err(json.refuse(FIELD, value, &format!("it names no `quant_method`: {SUPPORTED}"))),
    }
}

/// Refuses all but these values of a field, capitals aside.
fn expect(json: &ConfigJson, field: &str, supported: &[&str]) -> Result<Option<String>> {
    let found: Option<String> = json.get(field)?;
    let found = found.map(|found| found.to_lowercase());
    match found {
        Some(found) if !supported.contains(&found.as_str()) => {
            Err(json.refuse(field, found, &format!("only {} is supported", supported.join(" or "))))
        }
        found => Ok(found),
    }
}

/// The inputs that share a scale; -1 means all of them.
fn group_size(json: &ConfigJson, fields: &[&str]) -> Result<Option<usize>> {
    match json.get_any::<i64>(fields)? {
        None | Some(-1) => Ok(None),
        Some(size) if size > 0 => Ok(usize::try_from(size).ok()),
        Some(size) => Err(json.refuse(fields[0], size, "it must be at least 1, or -1 for one group of all")),
    }
}

fn gptq(json: &ConfigJson) -> Result<Quantization> {
    json.ignore(GPTQ);
    let bits = json.require("bits")?;
    if !matches!(bits, 2 | 4 | 8) {
        return Err(json.refuse("bits", bits, "only 2, 4 and 8 are supported"));
    }
    expect(json, "pack_dtype", &["int32"])?;
    json.expect_only("is_marlin_format", false)?;
    if let Some(dynamic) = json.get::<Map<String, Value>>("dynamic")?
        && dynamic.keys().any(|rule| !rule.starts_with("-:"))
    {
        return Err(json.refuse("dynamic", Value::Object(dynamic), "modules of other bits are not supported"));
    }
    let formats = ["gptq", "gptq_v2", ""];
    let newer = expect(json, "format", &formats)?;
    let format = expect(json, "checkpoint_format", &formats)?.or(newer);
    let zeros_from_one = format.as_deref() != Some("gptq_v2");
    Ok(Quantization::Gptq { bits, group_size: group_size(json, &["group_size"])?, zeros_from_one })
}

fn awq(json: &ConfigJson) -> Result<Quantization> {
    json.ignore(AWQ);
    match json.get_any::<usize>(&["bits", "w_bit"])? {
        None | Some(4) => {}
        Some(bits) => return Err(json.refuse("bits", bits, "only 4 is supported")),
    }
    group_size(json, &["group_size", "q_group_size"])?; // the scales' shape says it
    json.expect_only("zero_point", true)?;
    expect(json, "version", &["gemm"])?;
    expect(json, "format", &["gemm"])?;
    Ok(Quantization::Awq)
}

fn fp8(json: &ConfigJson) -> Result<Quantization> {
    json.ignore(&["activation_scheme", "dequantize"]); // activations are not rounded here
    expect(json, "fmt", &["e4m3"])?;
    expect(json, "scale_fmt", &["ue8m0", "float"])?; // of scales that are stored as fp32
    if let Some(dtype) = json.get::<String>("expert_dtype")? {
        return Err(json.refuse("expert_dtype", dtype, "experts of another dtype are not supported"));
    }
    let block = match json.get_unless_null::<[usize; 2]>("weight_block_size", Some([128, 128]))? {
        Some([0, _] | [_, 0]) => return Err(Error::field("weight_block_size", 0, "it must be at least 1")),
        block => block,
    };
    Ok(Quantization::Fp8 { block })
}
