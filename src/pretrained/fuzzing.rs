//! The readers of configurations and of saved caches, for fuzz targets in `fuzz/`. The readers of checkpoints need no libtorch, and are
//! compiled into their targets from `src/format`.

use serde_json::{Map, Value};

use super::config_json::ConfigJson;
use super::family::{self, transformer_lens};
use super::multimodal;
use crate::cache::ActivationCache;

/// A `config.json`, or a `cfg.json`.
pub fn config_json(bytes: &[u8]) {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    if let Ok(config) = transformer_lens::config(&ConfigJson::new(fields.clone())) {
        let _ = config.validate();
    }
    let Ok(within) = multimodal::language_model(&fields) else { return };
    let json = ConfigJson::new(within.unwrap_or(fields));
    let Ok(family) = family::find(&json) else { return };
    let Ok(config) = family.read_config(&json) else { return };
    if config.validate().is_ok() {
        let _ = (family.names)(&config, &json);
    }
}

/// The file of a saved cache: it is an error, or every activation can be read.
pub fn saved_cache(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("tch-lens-fuzz-{}", std::process::id()));
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(cache) = ActivationCache::open(&path) {
        for (_, tensor) in &cache {
            let _ = tensor.f_to_kind(tch::Kind::Double).and_then(|tensor| tensor.f_sum(tch::Kind::Double));
        }
        let _ = cache.apply_slice_to_batch_dim(0);
    }
    let _ = std::fs::remove_file(&path);
}
