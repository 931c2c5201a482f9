//! The reader of configurations, for a fuzz target in `fuzz/`. The readers of checkpoints need no libtorch, and are
//! compiled into their targets from `src/format`.

use serde_json::{Map, Value};

use super::config_json::ConfigJson;
use super::family::{self, transformer_lens};
use super::multimodal;

/// A `config.json`, or a `cfg.json`.
pub fn config_json(bytes: &[u8]) {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    if let Ok(config) = transformer_lens::config(&ConfigJson::new(fields.clone())) {
        let _ = config.validate();
    }
    let Ok(within) = multimodal::language_model(&fields) else { return };
    let json = ConfigJson::new(within.unwrap_or(fields));
    let Ok(family) = family::find(&json) else { return };
    let Ok(config) = (family.config)(&json) else { return };
    if config.validate().is_ok() {
        let _ = (family.names)(&config, &json);
    }
}
