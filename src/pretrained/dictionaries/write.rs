//! Dictionaries to files: SAELens' format, and circuit-tracer's sets.

use std::path::Path;

use serde_json::json;
use tch::{Kind, Tensor};

use crate::format::PartFile;
use crate::hook::HookPoint;
use crate::sae::{Dictionary, DictionarySet, FeatureActivation, InputNormalization};
use crate::tensor::file::write_safetensors;
use crate::{Error, Result};

impl Dictionary {
    /// Writes the dictionary in the format of SAELens 6: `cfg.json` and `sae_weights.safetensors`.
    ///
    /// ```
    /// use tch_lens::sae::{Dictionary, DictionaryConfig, DictionaryWeights, FeatureActivation};
    /// use tch_lens::{hook, tch::{Device, Kind, Tensor}, DictionaryOptions};
    /// # let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    /// # let weights = DictionaryWeights {
    /// #     w_enc: random(&[64, 128]), b_enc: random(&[64]), w_dec: random(&[64, 128]), b_dec: random(&[128]),
    /// #     w_skip: None, threshold: None, b_gate: None, r_mag: None,
    /// # };
    /// # let sae = Dictionary::new(DictionaryConfig::new(hook::resid_post(1), FeatureActivation::TopK(8)), weights)?;
    /// let folder = tempfile::tempdir().unwrap();
    /// sae.save_saelens(folder.path())?;
    /// let again = DictionaryOptions::new().open(folder.path())?;
    /// assert_eq!(again.config(), sae.config());
    /// assert_eq!(again.w_dec()?, sae.w_dec()?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] for a kind that the format does not have: tanh-ReLU, GroupMax, transcoders that are neither ReLU nor JumpReLU, and
    /// layers of a cross-layer transcoder; [`Error::Io`].
    pub fn save_saelens(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let config = self.config();
        if self.is_cross_layer() {
            return Err(self.refused("SAELens' format has no layer of a cross-layer transcoder: write the set"));
        }
        let (read, out) = (config.hook_in, config.hook_out);
        let skip = if self.w_skip().is_some() { "skip_" } else { "" };
        let architecture = match (config.activation, config.is_transcoder() || self.w_skip().is_some()) {
            (FeatureActivation::Relu, false) => "standard".to_string(),
            (FeatureActivation::JumpRelu, false) => "jumprelu".into(),
            (FeatureActivation::Gated, false) => "gated".into(),
            (FeatureActivation::TopK(_), false) => "topk".into(),
            (FeatureActivation::AbsTopK(_), false) => "abstopk".into(),
            (FeatureActivation::BatchTopK(_), false) => "batchtopk".into(),
            (FeatureActivation::Relu, true) => format!("{skip}transcoder"),
            (FeatureActivation::JumpRelu, true) => format!("jumprelu_{skip}transcoder"),
            (kind, _) => {
                return Err(self.refused(format!("SAELens' format has no dictionary of kind {kind} like this")))
            }
        };
        let normalization = match config.normalization {
            InputNormalization::None => "none",
            InputNormalization::LayerNorm => "layer_norm",
            InputNormalization::ConstantNorm => "constant_norm_rescale",
        };
        let mut metadata =
            json!({ "hook_name": read.to_string(), "hook_head_index": null, "model_name": config.model_name });
        let mut fields = json!({
            "architecture": architecture,
            "d_in": self.d_in(),
            "d_sae": self.d_sae(),
            "dtype": dtype(self.kind()),
            "device": "cpu",
            "apply_b_dec_to_input": config.apply_b_dec_to_input,
            "normalize_activations": normalization,
            "reshape_activations": if config.flatten_heads { "hook_z" } else { "none" },
        });
        if architecture.ends_with("transcoder") {
            fields["d_out"] = json!(self.d_out());
            metadata["hook_name_out"] = json!(out.to_string());
        }
        match config.activation {
            FeatureActivation::TopK(k) | FeatureActivation::AbsTopK(k) => fields["k"] = json!(k),
            FeatureActivation::BatchTopK(k) => fields["k"] = json!(k),
            _ => {}
        }
        if config.rescale_by_decoder_norm {
            fields["rescale_acts_by_decoder_norm"] = json!(true);
        }
        fields["metadata"] = metadata;
        let mut tensors = vec![
            ("W_enc".to_string(), self.w_enc().f_tr()?),
            ("W_dec".into(), self.w_dec()?),
            ("b_dec".into(), self.b_dec()),
            (if self.gate().is_some() { "b_mag" } else { "b_enc" }.into(), self.b_enc()),
        ];
        if let Some([b_gate, r_mag]) = self.gate() {
            tensors.extend([("b_gate".to_string(), b_gate), ("r_mag".into(), r_mag)]);
        }
        tensors.extend(self.threshold().map(|threshold| ("threshold".to_string(), threshold)));
        tensors.extend(self.w_skip().map(|w_skip| ("W_skip".to_string(), w_skip)));
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        write_safetensors(&folder.join(super::saelens::WEIGHTS), tensors)?;
        let path = folder.join(super::saelens::CONFIG);
        let text = serde_json::to_vec_pretty(&fields).map_err(|error| Error::malformed(&path, error))?;
        PartFile::write(&path, &text).map_err(Error::io(&path))
    }
}

impl DictionarySet {
    /// Writes the set in circuit-tracer's format: `config.yaml` and a file for each layer; for a cross-layer transcoder, one for its encoder and one
    /// for its decoders.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] for what the format does not have: layers that are missing, hooks that are not the same in each layer, other kinds than
    /// ReLU and JumpReLU, `b_dec` that is subtracted from the input, normalised or rescaled activations, skip connections of a
    /// cross-layer transcoder; [`Error::Io`].
    pub fn save_circuit_tracer(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let Some(first) = self.dictionaries().first() else {
            return Err(Error::Internal("a set without dictionaries"));
        };
        let cross_layer = self.is_cross_layer();
        for (layer, dictionary) in self.dictionaries().iter().enumerate() {
            let config = dictionary.config();
            let place = |hook: HookPoint, of: HookPoint| hook.layer() == Some(layer) && hook.site() == of.site();
            if !place(config.hook_in, first.hook_in()) || !place(config.hook_out, first.hook_out()) {
                return Err(dictionary.refused(format!(
                    "circuit-tracer's sets have the same hooks in each layer from 0, and this is the {layer}-th"
                )));
            }
            let plain = !config.apply_b_dec_to_input
                && !config.rescale_by_decoder_norm
                && config.normalization == InputNormalization::None
                && !config.flatten_heads
                && matches!(config.activation, FeatureActivation::Relu | FeatureActivation::JumpRelu);
            if !plain || (cross_layer && dictionary.w_skip().is_some()) {
                let what = "circuit-tracer's format has ReLU and JumpReLU transcoders only, without norms, without `b_dec` at the input, and without skip \
                            connections across layers";
                return Err(dictionary.refused(what));
            }
        }
        let short = |hook: HookPoint| hook.site().name();
        let text = |text: &str| serde_json::to_string(text).unwrap_or_default();
        let mut yaml = format!(
            "model_name: {}\nmodel_kind: {}\nfeature_input_hook: {}\nfeature_output_hook: {}\n",
            text(first.config().model_name.as_deref().unwrap_or("")),
            if cross_layer { "cross_layer_transcoder" } else { "transcoder_set" },
            short(first.hook_in()),
            short(first.hook_out()),
        );
        if let Some(scan) = self.scan() {
            yaml.push_str(&format!("scan: {}\n", text(scan)));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        for (layer, dictionary) in self.dictionaries().iter().enumerate() {
            let named = |name: &str| if cross_layer { format!("{name}_{layer}") } else { name.to_string() };
            let threshold = if cross_layer { named("threshold") } else { "activation_function.threshold".into() };
            let mut tensors = vec![
                (named("W_enc"), dictionary.w_enc()),
                (named("b_enc"), dictionary.b_enc()),
                (named("b_dec"), dictionary.b_dec()),
            ];
            tensors.extend(dictionary.threshold().map(|tensor| (threshold, tensor)));
            let file = |name: &str| folder.join(format!("{name}_{layer}.safetensors"));
            if cross_layer {
                write_safetensors(&file("W_enc"), tensors)?;
                let options = (dictionary.kind(), dictionary.device());
                let outputs = 0..dictionary.outputs().len();
                let decoders = outputs.map(|output| dictionary.decoder(output)?.whole(options));
                let decoders = Tensor::f_stack(&decoders.collect::<Result<Vec<_>>>()?, 1)?; // [feature, layer, d_out]
                write_safetensors(&file("W_dec"), vec![(named("W_dec"), decoders)])?;
            } else {
                tensors.push(("W_dec".into(), dictionary.w_dec()?));
                tensors.extend(dictionary.w_skip().map(|w_skip| ("W_skip".to_string(), w_skip)));
                write_safetensors(&file("layer"), tensors)?;
            }
        }
        let path = folder.join(super::circuit_tracer::CONFIG);
        PartFile::write(&path, yaml.as_bytes()).map_err(Error::io(&path))
    }
}

/// torch's name of a kind.
fn dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "float64",
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}
