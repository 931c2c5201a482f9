//! Rotary positions as `config.json` describes them: with the keys of transformers 5 (`rope_parameters`) or of
//! transformers 4 (`rope_theta`, `rope_scaling`, `partial_rotary_factor`).

use super::config_json::ConfigJson;
use crate::config::{PerLayer, Positions, Reach, RopeScaling, Rotary};
use crate::Result;

/// The names of a family's rotary fields in transformers 4, and transformers' defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rope {
    /// The default base of the wavelengths.
    pub(crate) theta: f64,
    pub(crate) theta_field: &'static str,
    /// The default share of a head that rotates. `None`: the family rotates whole heads.
    pub(crate) partial: Option<f64>,
    pub(crate) partial_field: &'static str,
    /// Whether a share of an odd number of dimensions is rounded up. In other families transformers cannot run it.
    pub(crate) rounds_up: bool,
    /// The trained context where `original_max_position_embeddings` is absent. `None`: the context itself.
    pub(crate) trained: Option<usize>,
    /// The scaling for a file without `rope_parameters` and `rope_scaling`. `None`: no scaling.
    pub(crate) scaling: Option<&'static RopeScaling>,
}

impl Rope {
    /// Llama's, which most families share.
    pub(crate) const DEFAULT: Rope = Rope {
        theta: 10000.0,
        theta_field: "rope_theta",
        partial: None,
        partial_field: "partial_rotary_factor",
        rounds_up: false,
        trained: None,
        scaling: None,
    };
}

/// What the other fields of the configuration say about a rotation.
#[derive(Clone, Copy, Debug)]
struct RopeContext {
    theta: f64,
    partial: Option<f64>,
    rounds_up: bool,
    trained: Option<usize>,
    d_head: usize,
    n_ctx: usize,
}

impl ConfigJson {
    /// The rotation of heads of `d_head` in a context of `n_ctx`.
    pub(crate) fn rotary(&self, d_head: usize, n_ctx: usize, rope: Rope) -> Result<Rotary> {
        // In transformers, too, `rope_scaling` has precedence.
        let parameters = match self.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => self.object("rope_parameters")?,
        };
        let theta = self.get_or(rope.theta_field, rope.theta)?;
        let partial = match rope.partial {
            Some(default) => Some(self.get_or(rope.partial_field, default)?),
            None => self.expect_only(rope.partial_field, 1.0).map(|()| None)?,
        };
        let trained = self.get("original_max_position_embeddings")?.or(rope.trained);
        let context = RopeContext { theta, partial, rounds_up: rope.rounds_up, trained, d_head, n_ctx };
        let silent = !self.has_any(&["rope_scaling", "rope_parameters"]);
        let mut rotary = rotary(&parameters.unwrap_or_default(), context)?;
        if let (Some(scaling), true) = (rope.scaling, silent) {
            rotary.scaling = scaling.clone();
        }
        Ok(rotary)
    }

    /// What YaRN multiplies the scores of latent attention by, the square of its factor for all dimensions, if there is one.
    pub(crate) fn scores_factor(&self) -> Result<Option<f64>> {
        let parameters = match self.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => self.object("rope_parameters")?,
        };
        let Some(parameters) = parameters else { return Ok(None) };
        let rope_type: String = parameters.get_any(&["rope_type", "type"])?.unwrap_or("default".into());
        let all: f64 = parameters.get_or("mscale_all_dim", 0.0)?;
        if rope_type == "default" || all == 0.0 {
            return Ok(None);
        }
        let factor: f64 = parameters.require("factor")?;
        Ok((factor > 1.0).then(|| (0.1 * all * factor.ln() + 1.0).powi(2)))
    }

    /// The rotations of the global and the local layers, in layers that reach so far. `rope_parameters` has an object for each.
    pub(crate) fn rotary_by_layer_type(
        &self,
        reach: &PerLayer<Reach>,
        d_head: usize,
        n_ctx: usize,
        global: Rope,
        local: Rope,
    ) -> Result<Positions> {
        let both = self.object("rope_parameters")?.unwrap_or_default();
        let scaling = self.object("rope_scaling")?; // transformers applies it to the global layers only
        let read = |field: &str, scaling: Option<ConfigJson>, rope: Rope| {
            let parameters = match (both.object(field)?, scaling) {
                (Some(_), Some(_)) => {
                    return Err(self.refuse("rope_scaling", "given", "`rope_parameters` has it already"));
                }
                (parameters, scaling) => parameters.or(scaling).unwrap_or_default(),
            };
            let theta = self.get_or(rope.theta_field, rope.theta)?;
            rotary(&parameters, RopeContext { theta, partial: None, rounds_up: false, trained: None, d_head, n_ctx })
        };
        let (global, local) = (read("full_attention", scaling, global)?, read("sliding_attention", None, local)?);
        Ok(Positions::Rotary(reach.map(|reach| match reach {
            Reach::Global => Some(global.clone()),
            Reach::Window(_) | Reach::Chunk(_) => Some(local.clone()),
        })))
    }

    /// The rotation that `rope_parameters` has for layers of this type; `None` where it says null.
    pub(crate) fn rotary_of(
        &self,
        layer_type: &str,
        d_head: usize,
        n_ctx: usize,
        rope: Rope,
    ) -> Result<Option<Rotary>> {
        let parameters = self.object("rope_parameters")?.unwrap_or_default();
        let Rope { theta, partial, rounds_up, trained, .. } = rope;
        let context = RopeContext { theta, partial, rounds_up, trained, d_head, n_ctx };
        parameters.object(layer_type)?.map(|parameters| rotary(&parameters, context)).transpose()
    }
}

/// The rotation that `parameters` describe.
fn rotary(parameters: &ConfigJson, context: RopeContext) -> Result<Rotary> {
    let RopeContext { d_head, n_ctx, .. } = context;
    let mut base: f64 = parameters.get_or("rope_theta", context.theta)?;
    let mut dim = d_head;
    let rope_type = parameters.get_any(&["rope_type", "type"])?.unwrap_or("default".to_string());
    let mut pairs = None;
    match context.partial {
        // Here the share is one of pairs, at the pace of whole heads.
        _ if rope_type == "proportional" => {
            let partial: f64 = parameters.get_or("partial_rotary_factor", context.partial.unwrap_or(1.0))?;
            let turning = (d_head as f64 * partial / 2.0) as usize;
            if turning > d_head / 2 {
                let why = format!("of {} pairs {turning} would turn", d_head / 2);
                return Err(parameters.refuse("partial_rotary_factor", partial, &why));
            }
            pairs = (turning < d_head / 2).then_some(turning);
        }
        None => parameters.expect_only("partial_rotary_factor", 1.0)?,
        Some(default) => {
            let partial: f64 = parameters.get_or("partial_rotary_factor", default)?;
            dim = (d_head as f64 * partial) as usize;
            if context.rounds_up && dim % 2 == 1 && dim < d_head {
                // One more dimension rotates. The frequencies stay base^(-2i / dim) with the unrounded dim.
                base = base.powf((dim + 1) as f64 / dim as f64);
                dim += 1;
            }
            if dim == 0 || dim > d_head || dim % 2 == 1 {
                let why = format!("of {d_head} dimensions {dim} would rotate: expected an even number, 2 or more");
                return Err(parameters.refuse("partial_rotary_factor", partial, &why));
            }
        }
    }
    // The model's own field has precedence over that of the parameters.
    let inner: Option<usize> = parameters.get("original_max_position_embeddings")?;
    let trained = context.trained.or(inner).unwrap_or(n_ctx);
    if trained == 0 {
        return Err(parameters.refuse("original_max_position_embeddings", trained, "it must be at least 1"));
    }
    if base != parameters.get_or("rope_theta", context.theta)? && matches!(rope_type.as_str(), "dynamic" | "yarn") {
        return Err(parameters.refuse("rope_type", rope_type, "it needs an even number of dimensions that rotate"));
    }
    let scaling = match rope_type.as_str() {
        "default" | "mrope" => {
            // Which dimensions turn by which of a token's several positions, which are one in text.
            parameters.ignore(&["mrope_section", "mrope_interleaved"]);
            RopeScaling::None
        }
        "proportional" => match parameters.get_or("factor", 1.0)? {
            1.0 => RopeScaling::None,
            factor => RopeScaling::Linear { factor },
        },
        "linear" => RopeScaling::Linear { factor: parameters.require("factor")? },
        "dynamic" => {
            RopeScaling::Dynamic { factor: parameters.require("factor")?, original_max_position_embeddings: n_ctx }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: parameters.require("factor")?,
            low_freq_factor: parameters.require("low_freq_factor")?,
            high_freq_factor: parameters.require("high_freq_factor")?,
            original_max_position_embeddings: trained,
        },
        "yarn" => {
            let factor = parameters.get_or("factor", n_ctx as f64 / trained as f64)?;
            RopeScaling::Yarn {
                factor,
                attention_factor: yarn_attention_factor(parameters, factor)?,
                beta_fast: parameters.get_or("beta_fast", 32.0)?,
                beta_slow: parameters.get_or("beta_slow", 1.0)?,
                truncate: parameters.get_or("truncate", true)?,
                original_max_position_embeddings: trained,
            }
        }
        "longrope" | "su" => {
            let factor: f64 = parameters.get_or("factor", n_ctx as f64 / trained as f64)?;
            let natural = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (trained as f64).ln()).sqrt() };
            RopeScaling::LongRope {
                short_factor: divisors(parameters, "short_factor", dim / 2)?,
                long_factor: divisors(parameters, "long_factor", dim / 2)?,
                attention_factor: parameters.get_or("attention_factor", natural)?,
                original_max_position_embeddings: trained,
            }
        }
        other => return Err(parameters.refuse("rope_type", other, "this rope scaling is not supported")),
    };
    Ok(Rotary { scaling, pairs, ..Rotary::new(dim, base) })
}

/// The factor of cosine and sine in YaRN: the file's, or the one of Peng et al. 2023, section 3.4.
fn yarn_attention_factor(parameters: &ConfigJson, factor: f64) -> Result<f64> {
    let natural = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let given = parameters.get("attention_factor")?;
    let (m, all) = (parameters.get_or("mscale", 0.0)?, parameters.get_or("mscale_all_dim", 0.0)?);
    Ok(given.unwrap_or(if m != 0.0 && all != 0.0 { natural(m) / natural(all) } else { natural(1.0) }))
}

/// LongRoPE's divisors, one for each pair.
fn divisors(parameters: &ConfigJson, field: &str, pairs: usize) -> Result<Vec<f64>> {
    let divisors: Vec<f64> = parameters.require(field)?;
    match divisors.len() == pairs {
        true => Ok(divisors),
        false => {
            let value = format!("a list of {}", divisors.len());
            Err(parameters.refuse(field, value, &format!("it must have one entry for each of the {pairs} pairs")))
        }
    }
}
