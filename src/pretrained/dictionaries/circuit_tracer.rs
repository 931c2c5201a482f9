//! circuit-tracer's formats: a folder with `config.yaml` and a transcoder a layer, or the encoders and decoders of a cross-layer one.

use std::path::Path;

use super::listed;
use super::options::DictionaryOptions;
use super::tensors::{Orientation, Tensors};
use crate::config::Stack;
use crate::format::{safetensors, yaml};
use crate::hook::{whole, HookPoint, Place};
use crate::sae::{Decoder, Dictionary, DictionaryConfig, DictionarySet, Encoder, FeatureActivation};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "config.yaml";

/// What `config.yaml` says.
pub(super) struct Config {
    model_name: Option<String>,
    hook_in: String,
    hook_out: String,
    cross_layer: bool,
    pub(super) scan: Option<String>,
    /// The files of the transcoders, where they are elsewhere.
    transcoders: Option<Vec<String>>,
}

/// Fields that change nothing in what is computed.
const HARMLESS: &[&str] =
    &["repo_id", "revision", "subfolder", "description", "license", "dtype", "n_layers", "d_transcoder", "d_model"];

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Config::parse(&bytes, path)
    }

    /// The configuration in these bytes of the file at `path`.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let malformed = |what: String| Error::malformed(path, what);
        let mut config = Config {
            model_name: None,
            hook_in: String::new(),
            hook_out: String::new(),
            cross_layer: false,
            scan: None,
            transcoders: None,
        };
        let mut kind = None;
        for (key, value) in yaml::read(bytes).map_err(|what| Error::malformed(path, what))? {
            let scalar = match value {
                yaml::Value::Scalar(text) => text,
                yaml::Value::List(_) if key == "scan" => continue,
                yaml::Value::List(files) if key == "transcoders" => {
                    config.transcoders = Some(files);
                    continue;
                }
                yaml::Value::List(_) => return Err(malformed(format!("`{key}` is a list, expected one value"))),
            };
            match key.as_str() {
                "model_name" => config.model_name = Some(scalar),
                "model_kind" => kind = Some(scalar),
                "feature_input_hook" => config.hook_in = scalar,
                "feature_output_hook" => config.hook_out = scalar,
                "scan" => config.scan = Some(scalar).filter(|scan| !scan.is_empty()),
                key if HARMLESS.contains(&key) => {}
                key => return Err(malformed(format!("field `{key}` is unknown, and might change what is computed"))),
            }
        }
        config.cross_layer = match kind.as_deref() {
            Some("transcoder_set") | None => false,
            Some("cross_layer_transcoder") => true,
            Some(other) => {
                return Err(malformed(format!(
                    "`model_kind` is `{other}`: only `transcoder_set` and `cross_layer_transcoder` are known"
                )))
            }
        };
        for (field, hook) in [("feature_input_hook", &config.hook_in), ("feature_output_hook", &config.hook_out)] {
            if point(hook, 0).is_none() {
                return Err(malformed(format!("`{field}` is `{hook}`, which names no activation of a layer")));
            }
        }
        Ok(config)
    }

    pub(super) fn of_layer(&self, layer: usize, activation: FeatureActivation) -> Result<DictionaryConfig> {
        let hook = |name: &str| point(name, layer).ok_or(Error::Internal("a hook's name that was checked"));
        Ok(DictionaryConfig {
            hook_out: hook(&self.hook_out)?,
            apply_b_dec_to_input: false,
            model_name: self.model_name.clone(),
            ..DictionaryConfig::new(hook(&self.hook_in)?, activation)
        })
    }
}

/// The point of this name in a layer, without the `blocks.L.` of its name.
fn point(name: &str, layer: usize) -> Option<HookPoint> {
    whole(&format!("blocks.{layer}.{name}"), Stack::Blocks).filter(|point| point.site().place() == Place::Layer)
}

pub(super) fn open(folder: &Path, options: &DictionaryOptions) -> Result<DictionarySet> {
    let config = Config::read(&folder.join(CONFIG))?;
    match &config.transcoders {
        Some(_) if config.cross_layer => {
            let what = "`transcoders` lists the layers of a cross-layer transcoder, which is not supported: give it in circuit-tracer's own format";
            return Err(Error::malformed(folder.join(CONFIG), what));
        }
        Some(list) => {
            let dictionaries = listed::open(folder, &config, list, options)?;
            return Ok(DictionarySet::new(dictionaries)?.with_scan(config.scan));
        }
        None => {}
    }
    let prefix = if config.cross_layer { "W_enc_" } else { "layer_" };
    let n_layers = count(folder, prefix)?;
    let layers = 0..n_layers;
    let dictionaries = match config.cross_layer {
        true => layers.map(|layer| cross_layer(folder, &config, layer, n_layers, options)).collect::<Result<_>>(),
        false => layers.map(|layer| transcoder(folder, &config, layer, options)).collect::<Result<_>>(),
    };
    Ok(DictionarySet::new(dictionaries?)?.with_scan(config.scan))
}

/// How many layers there are files of, from 0 without a gap.
fn count(folder: &Path, prefix: &str) -> Result<usize> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut layers = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned();
        let layer = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".safetensors"));
        layers.extend(layer.and_then(|layer| layer.parse::<usize>().ok()));
    }
    layers.sort_unstable();
    let missing = (0..layers.len()).find(|layer| layers[*layer] != *layer);
    match (layers.is_empty(), missing) {
        (true, _) => Err(Error::malformed(folder, format!("there is no `{prefix}0.safetensors`"))),
        (_, Some(layer)) => Err(Error::malformed(
            folder,
            format!("there is no `{prefix}{layer}.safetensors`, but files of later layers"),
        )),
        (_, None) => Ok(layers.len()),
    }
}

/// One layer of a transcoder set.
fn transcoder(folder: &Path, config: &Config, layer: usize, options: &DictionaryOptions) -> Result<Dictionary> {
    let path = folder.join(format!("layer_{layer}.safetensors"));
    let tensors = Tensors::open(&path, safetensors::entries, options)?;
    of_tensors(tensors, config, layer)
}

/// One layer of a transcoder set from the tensors of its file.
pub(super) fn of_tensors(tensors: Tensors, config: &Config, layer: usize) -> Result<Dictionary> {
    let threshold = tensors.get("activation_function.threshold")?;
    let activation = if threshold.is_some() { FeatureActivation::JumpRelu } else { FeatureActivation::Relu };
    let encoder = Encoder {
        w_enc: tensors.by_feature("W_enc", Orientation::ByFeature)?,
        b_enc: tensors.need("b_enc")?,
        b_dec: tensors.need("b_dec")?,
        w_skip: tensors.get("W_skip")?,
        threshold,
        b_gate: None,
        r_mag: None,
    };
    let decoder = tensors.decoder("W_dec", Orientation::ByFeature, None)?;
    tensors.finish()?;
    let config = config.of_layer(layer, activation)?;
    let outputs = vec![(config.hook_out, decoder)];
    Dictionary::with_decoders(config, encoder, outputs)
}

/// One layer of a cross-layer transcoder, which writes to its own layer and all later ones.
fn cross_layer(
    folder: &Path,
    config: &Config,
    layer: usize,
    n_layers: usize,
    options: &DictionaryOptions,
) -> Result<Dictionary> {
    let tensors = Tensors::open(&folder.join(format!("W_enc_{layer}.safetensors")), safetensors::entries, options)?;
    let threshold = tensors.get(&format!("threshold_{layer}"))?;
    let activation = if threshold.is_some() { FeatureActivation::JumpRelu } else { FeatureActivation::Relu };
    let encoder = Encoder {
        w_enc: tensors.by_feature(&format!("W_enc_{layer}"), Orientation::ByFeature)?,
        b_enc: tensors.need(&format!("b_enc_{layer}"))?,
        b_dec: tensors.need(&format!("b_dec_{layer}"))?,
        w_skip: None,
        threshold,
        b_gate: None,
        r_mag: None,
    };
    tensors.finish()?;
    let path = folder.join(format!("W_dec_{layer}.safetensors"));
    let tensors = Tensors::open(&path, safetensors::entries, options)?;
    let name = format!("W_dec_{layer}");
    let later = n_layers - layer;
    if let Some(&[_, found, _]) = tensors.shape(&name).as_deref()
        && found != later as i64
    {
        let what = format!("`{name}` writes to {found} layers, but {later} have an encoder from this one on");
        return Err(tensors.malformed(what));
    }
    let outputs = (0..later)
        .map(|offset| {
            let hook =
                point(&config.hook_out, layer + offset).ok_or(Error::Internal("a hook's name that was checked"))?;
            let decoder: Decoder = tensors.decoder(&name, Orientation::ByFeature, Some(offset as i64))?;
            Ok((hook, decoder))
        })
        .collect::<Result<Vec<_>>>()?;
    tensors.finish()?;
    Dictionary::with_decoders(config.of_layer(layer, activation)?, encoder, outputs)
}
