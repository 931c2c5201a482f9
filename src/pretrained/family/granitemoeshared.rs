//! Granite with mixtures beside an MLP that all tokens share (IBM 2025).

use super::{granitemoe, llama_style, ConfigJson, Family};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("granitemoeshared", &["GraniteMoeSharedForCausalLM"], config, granitemoe::names);

fn config(json: &ConfigJson) -> Result<Config> {
    granitemoe::with_mixtures(json, json.get_or("shared_intermediate_size", 0)?)
}
