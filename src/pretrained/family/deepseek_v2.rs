//! DeepSeek 2 (DeepSeek-AI 2024): latent attention, and mixtures with shared experts after some dense layers.

use super::latent_style::{self, DEEPSEEK};
use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Experts, GroupRank, Routing};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("deepseek_v2", &["DeepseekV2ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults { vocab_size: 102_400, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    // transformers does not normalise, whatever `norm_topk_prob` says.
    json.ignore(&["output_router_logits", "norm_topk_prob"]);
    json.expect_only("mlp_bias", false)?;
    json.expect_only("scoring_func", "softmax".to_string())?;
    let mut config = latent_style::config(json, &DEFAULTS, DEEPSEEK, true)?;
    let groups = match json.get_or("topk_method", "greedy".to_string())?.as_str() {
        "greedy" => {
            json.ignore(&["n_group", "topk_group"]);
            None
        }
        "group_limited_greedy" => mixture_style::expert_groups(json, [0, 0], GroupRank::Largest)?,
        other => return Err(json.refuse("topk_method", other, "only greedy and group_limited_greedy are known")),
    };
    let width = json.get_or("moe_intermediate_size", 1407)?;
    let routing = Routing { groups, scale: json.get_or("routed_scaling_factor", 1.0)?, ..Routing::softmax() };
    let dense: usize = json.get_or("first_k_dense_replace", 0)?;
    let n_experts = json.get_any(&["n_routed_experts", "num_experts"])?.unwrap_or(64);
    let experts = Experts {
        shared: mixture_style::shared(json.get_or("n_shared_experts", 2)?, width),
        dense: mixture_style::dense_layers(&config, |layer| layer < dense),
        ..Experts::new(n_experts, json.require("num_experts_per_tok")?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, &latent_style::names(config, json)?, NORMS, MLP, EXPERTS, SHARED_EXPERTS].concat())
}
