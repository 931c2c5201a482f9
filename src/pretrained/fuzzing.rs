//! The readers of what others wrote, for the fuzz targets in `fuzz/`: none may panic, hang, or take more memory than its input.

use std::path::Path;

use serde_json::{Map, Value};

use super::checkpoint::{shards_in, Checkpoint};
use super::config_json::ConfigJson;
use super::family::{self, transformer_lens};
use super::torch_file;

/// A `config.json`, or a `cfg.json`.
pub fn config_json(bytes: &[u8]) {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    if let Ok(config) = transformer_lens::config(&ConfigJson::new(fields.clone())) {
        let _ = config.validate();
    }
    let json = ConfigJson::new(fields);
    let Ok(family) = family::of(&json) else { return };
    let Ok(config) = (family.config)(&json) else { return };
    if config.validate().is_ok() {
        let _ = (family.names)(&config, &json);
    }
}

/// A `model.safetensors`, or the index of its shards.
pub fn safetensors(bytes: &[u8]) {
    let _ = Checkpoint::of_safetensors(bytes, Path::new("model.safetensors"));
    if let Ok(shards) = shards_in(bytes, Path::new("model.safetensors.index.json")) {
        assert!(shards.iter().all(|shard| shard.components().count() == 1 && shard.file_name().is_some()));
    }
}

/// A `pytorch_model.bin`.
pub fn torch_file(bytes: &[u8]) {
    for (name, place) in torch_file::entries(bytes).unwrap_or_default() {
        let len = place.len().expect("a tensor of some length");
        assert!(place.start + len <= bytes.len(), "{name} lies outside the file");
    }
}
