//! Quantised checkpoints of the hub: what `quantization_config` says, and the weights that it is about.
//!
//! A weight is dequantised when it is read, so the rest of the crate sees a plain tensor under its plain name. Which weights are
//! quantised, their own tensors say; the fields that name modules to be left out are therefore not needed.

mod methods;
pub(crate) mod weight;

use serde_json::{Map, Value};

use self::weight::Layout;
use super::checkpoint::Checkpoint;
use super::config_json::ConfigJson;
use super::parts::Entry;
use crate::format::quantized::{FourBitState, Method};
use crate::format::Dtype;
use crate::{CheckpointError, Error, Result};

/// The field of a `config.json`.
const FIELD: &str = "quantization_config";

/// How a checkpoint's weights are quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Quantization {
    Gptq { bits: usize, group_size: Option<usize>, zeros_from_one: bool },
    Awq,
    BitsAndBytes,
    Fp8 { block: Option<[usize; 2]> },
    Mxfp4,
}

impl Quantization {
    /// What the field says, which is taken out of the configuration: what is loaded is quantised no more.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`] of a method, or of a field of one, that is not supported.
    pub(crate) fn take(fields: &mut Map<String, Value>) -> Result<Option<Self>> {
        let inner = |fields: &mut Map<String, Value>| fields.get_mut("text_config")?.as_object_mut()?.remove(FIELD);
        let Some(value) = fields.remove(FIELD).or_else(|| inner(fields)).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let json = ConfigJson::new(Map::from_iter([(FIELD.to_string(), value.clone())]));
        let Some(own) = json.object(FIELD)? else { return Ok(None) };
        let quantization = methods::read(&own, &json, &value)?;
        match json.unread().first() {
            None => Ok(Some(quantization)),
            Some(field) => Err(Error::field(field, "given", "it is not a field of this method that is known here")),
        }
    }

    /// Puts plain weights in place of the quantised ones.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] and [`Error::Checkpoint`] for a weight whose tensors do not go together.
    pub(crate) fn apply(self, checkpoint: &mut Checkpoint, table: &[Entry], prefix: &str) -> Result<()> {
        let names: Vec<String> = checkpoint.names().map(String::from).collect();
        let entry = |name: &str| {
            let bare = |entry: &&Entry| entry.is_named(name) || entry.is_named(&format!("{prefix}{name}"));
            table.iter().find(bare)
        };
        // Methods store a matrix as a `Linear` has it, also where the family has a `Conv1D`.
        let is_conv = |name: &str| entry(name).is_some_and(|entry| entry.view.is_transposed());
        let transposed = |transposed| Layout { transposed, ..Layout::default() };
        for name in &names {
            match self {
                Quantization::Gptq { .. } | Quantization::Awq => {
                    let Some(base) = name.strip_suffix(".qweight") else { continue };
                    let weight = format!("{base}.weight");
                    let mut parts: Vec<String> =
                        ["qweight", "qzeros", "scales"].map(|part| format!("{base}.{part}")).into();
                    let listed = format!("{base}.g_idx");
                    let method = match self {
                        Quantization::Gptq { bits, group_size, zeros_from_one } => {
                            parts.extend(checkpoint.has(&listed).then_some(listed));
                            Method::Gptq { bits, group_size, zeros_from_one }
                        }
                        _ => Method::Awq,
                    };
                    let layout = transposed(!is_conv(&weight));
                    checkpoint.quantize(weight, method, &parts, None, layout)?;
                    // Some quantisers write biases of zeros where the model has none.
                    let bias = format!("{base}.bias");
                    if entry(&bias).is_none() && is_zero(checkpoint, &bias) {
                        checkpoint.remove(&bias);
                    }
                }
                Quantization::BitsAndBytes => {
                    if let Some(weight) = name.strip_suffix(".absmax") {
                        four_bits(checkpoint, weight, transposed(is_conv(weight)))?;
                    } else if let Some(base) = name.strip_suffix(".SCB") {
                        let weight = format!("{base}.weight");
                        let format = format!("{base}.weight_format");
                        if checkpoint.has(&format) && !is_zero(checkpoint, &format) {
                            let why = "the weights' order is that of a GPU's kernel: only row by row is supported";
                            return Err(Error::field(&format, "not 0", why));
                        }
                        checkpoint.remove(&format);
                        let layout = transposed(is_conv(&weight));
                        checkpoint.quantize(weight.clone(), Method::Int8, &[weight, name.clone()], None, layout)?;
                    }
                }
                Quantization::Fp8 { block } => {
                    if let Some(weight) = name.strip_suffix("_scale_inv").filter(|weight| weight.ends_with(".weight")) {
                        let parts = [weight.to_string(), name.clone()];
                        checkpoint.quantize(weight.into(), Method::Fp8 { block }, &parts, None, transposed(false))?;
                    } else if name.ends_with(".activation_scale") || name.ends_with(".input_scale") {
                        checkpoint.remove(name); // of activations, which are not rounded here
                    }
                }
                Quantization::Mxfp4 => {
                    let Some(weight) = name.strip_suffix("_blocks") else { continue };
                    let parts = [name.clone(), format!("{weight}_scales")];
                    // [expert, out, blocks, 16] is seen as [expert, in, out]
                    let shape = match checkpoint.shape(name).as_deref() {
                        Some([experts, rows, blocks, _]) => Some(vec![*experts, blocks.saturating_mul(32), *rows]),
                        _ => None,
                    };
                    checkpoint.quantize(weight.into(), Method::Mxfp4, &parts, shape, transposed(true))?;
                }
            }
        }
        Ok(())
    }
}

/// A weight of bitsandbytes in four bits.
fn four_bits(checkpoint: &mut Checkpoint, weight: &str, layout: Layout) -> Result<()> {
    let part = |name: &str| format!("{weight}.{name}");
    let state = ["nf4", "fp4"].map(|kind| part(&format!("quant_state.bitsandbytes__{kind}")));
    let state = state.into_iter().find(|name| checkpoint.has(name));
    let missing =
        || CheckpointError::MissingTensor { name: part("quant_state.bitsandbytes__nf4"), expected: Vec::new() };
    let state = state.ok_or_else(missing)?;
    let text = checkpoint.bytes(&state).map(|(_, bytes)| bytes).unwrap_or_default();
    let parsed = serde_json::from_slice::<FourBitState>(text);
    let parsed = parsed.map_err(|error| Error::field(&state, "not readable", &error.to_string()))?;
    checkpoint.remove(&state);
    let mut parts = vec![weight.to_string(), part("absmax"), part("quant_map")];
    if checkpoint.has(&part("nested_absmax")) {
        parts.extend([part("nested_absmax"), part("nested_quant_map")]);
    }
    checkpoint.quantize(weight.into(), Method::FourBits(parsed), &parts, None, layout)
}

/// Whether a tensor of a file holds nothing but zeros.
fn is_zero(checkpoint: &Checkpoint, name: &str) -> bool {
    let zero = |(place, bytes): (&crate::format::Place, &[u8])| match place.dtype {
        // Of a negative zero, the sign's bit is set.
        Dtype::F16 | Dtype::BF16 => bytes.chunks(2).all(|two| matches!(two, [0, 0 | 0x80])),
        Dtype::F32 => bytes.chunks(4).all(|four| matches!(four, [0, 0, 0, 0 | 0x80])),
        _ => bytes.iter().all(|byte| *byte == 0),
    };
    checkpoint.bytes(name).is_some_and(zero)
}
