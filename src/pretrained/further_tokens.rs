//! Tensors that predict further tokens than the next one (Gloeckle et al. 2024, "multi-token prediction"). transformers leaves them
//! out of the model as well.

use super::config_json::ConfigJson;

/// Whether a tensor is theirs: of layers after the model's own, as many as the file says, or named `mtp…`.
pub(super) fn is_theirs(json: &ConfigJson, n_layers: usize, name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    if name.starts_with("mtp.") || name.starts_with("mtp_") {
        return true;
    }
    let layer = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let Some(layer) = layer.filter(|layer| *layer >= n_layers) else { return false };
    let further = json.get_any::<usize>(&["num_nextn_predict_layers", "num_mtp_layers"]);
    layer - n_layers < further.ok().flatten().unwrap_or(0)
}
